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
	a := &aheadReader{full: make(chan chunk, aheadDepth), free: make(chan []byte, aheadDepth)}
	for range aheadDepth {
		a.free <- make([]byte, aheadChunk)
	}
	go a.fill(r)
	err := consume(a)
	close(a.free)
	for range a.full { // until fill is done
	}
	return err
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
