package bootstrap

import (
	"errors"
	"io"
)

const (
	aheadChunk = 256 << 10 // bytes
	aheadDepth = 4         // chunks
)

// readingAhead calls consume with a reader of r's bytes that a goroutine reads
// a few chunks ahead, so that decompression and its consumer overlap. The
// goroutine has ended when it returns.
func readingAhead(r io.Reader, consume func(io.Reader) error) error {
	a := startAhead(r, aheadDepth)
	defer a.stop()
	return consume(a)
}

// startAhead begins to read r, up to depth chunks ahead. The result must be
// stopped.
func startAhead(r io.Reader, depth int) *aheadReader {
	a := &aheadReader{full: make(chan chunk, depth), free: make(chan []byte, depth)}
	for range depth {
		a.free <- nil
	}
	go a.fill(r)
	return a
}

// chunk is what one read has brought.
type chunk struct {
	data []byte
	err  error
}

// aheadReader reads chunks that come by a channel and gives their memory back.
type aheadReader struct {
	full chan chunk
	free chan []byte
	now  chunk
	left []byte
}

func (a *aheadReader) fill(r io.Reader) {
	defer close(a.full)
	for buf := range a.free {
		if buf == nil {
			buf = make([]byte, aheadChunk)
		}
		n, err := io.ReadFull(r, buf)
		if errors.Is(err, io.ErrUnexpectedEOF) {
			err = io.EOF
		}
		a.full <- chunk{buf[:n], err}
		if err != nil {
			return
		}
	}
}

// stop ends the goroutine and waits for that; it may be called once.
func (a *aheadReader) stop() {
	close(a.free)
	for range a.full { // until fill has returned
	}
}

// Read implements io.Reader.
func (a *aheadReader) Read(p []byte) (int, error) {
	for len(a.left) == 0 {
		if a.now.err != nil {
			return 0, a.now.err
		}
		if a.now.data != nil {
			a.free <- a.now.data[:cap(a.now.data)]
		}
		a.now = <-a.full
		a.left = a.now.data
	}
	n := copy(p, a.left)
	a.left = a.left[n:]
	return n, nil
}
