package oci

import "io"

const (
	aheadChunk  = 256 << 10 // bytes
	aheadChunks = 4
)

// readAhead reads another reader in a goroutine, so that decompressing and
// hashing go on while files are written.
type readAhead struct {
	full  chan chunk
	empty chan []byte
	quit  chan struct{}
	done  chan struct{}
	cur   chunk
	rest  []byte
}

type chunk struct {
	data []byte
	err  error // after data
}

// newReadAhead starts to read r. It must be stopped.
func newReadAhead(r io.Reader) *readAhead {
	a := &readAhead{
		full: make(chan chunk, aheadChunks), empty: make(chan []byte, aheadChunks),
		quit: make(chan struct{}), done: make(chan struct{}),
	}
	for range aheadChunks {
		a.empty <- make([]byte, aheadChunk)
	}
	go a.run(r)
	return a
}

func (a *readAhead) run(r io.Reader) {
	defer close(a.done)
	for {
		var buf []byte
		select {
		case <-a.quit:
			return
		case buf = <-a.empty:
		}
		n, err := readSome(r, buf)
		a.full <- chunk{buf[:n], err} // has room for all chunks
		if err != nil {
			return
		}
	}
}

// readSome fills half of buf or more, unless there is an error.
func readSome(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf)/2 && err == nil {
		var m int
		m, err = r.Read(buf[n:])
		n += m
	}
	return n, err
}

// Read implements io.Reader.
func (a *readAhead) Read(p []byte) (int, error) {
	for len(a.rest) == 0 {
		if a.cur.err != nil {
			return 0, a.cur.err
		}
		if a.cur.data != nil {
			a.empty <- a.cur.data[:aheadChunk]
		}
		a.cur = <-a.full
		a.rest = a.cur.data
	}
	n := copy(p, a.rest)
	a.rest = a.rest[n:]
	return n, nil
}

// stop ends the goroutine. The reader cannot be used any more.
func (a *readAhead) stop() {
	close(a.quit)
	<-a.done
}
