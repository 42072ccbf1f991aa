package contents_test

import (
	"bytes"
	"errors"
	"io"
	"testing"
	"testing/iotest"

	"cairn/fsbuild/internal/contents"
	"cairn/fsbuild/tree"
)

type opener func() (io.Reader, error)

func (f opener) Open() (io.ReadCloser, error) {
	r, err := f()
	return io.NopCloser(r), err
}

type stuck struct{}

func (stuck) Read([]byte) (int, error) { return 0, nil }

func TestCopy(t *testing.T) {
	fault := errors.New("fault")
	hello := func() io.Reader { return bytes.NewReader([]byte("hello")) }
	for name, c := range map[string]struct {
		size int64
		open opener
		want error
	}{
		"exact":           {5, func() (io.Reader, error) { return hello(), nil }, nil},
		"byte by byte":    {5, func() (io.Reader, error) { return iotest.OneByteReader(hello()), nil }, nil},
		"EOF with data":   {5, func() (io.Reader, error) { return iotest.DataErrReader(hello()), nil }, nil},
		"short":           {6, func() (io.Reader, error) { return hello(), nil }, contents.ErrChanged},
		"long":            {4, func() (io.Reader, error) { return hello(), nil }, contents.ErrChanged},
		"should be empty": {0, func() (io.Reader, error) { return hello(), nil }, contents.ErrChanged},
		"open":            {5, func() (io.Reader, error) { return nil, fault }, fault},
		"read":            {5, func() (io.Reader, error) { return iotest.TimeoutReader(iotest.OneByteReader(hello())), nil }, iotest.ErrTimeout},
		"stuck":           {5, func() (io.Reader, error) { return stuck{}, nil }, io.ErrNoProgress},
	} {
		t.Run(name, func(t *testing.T) {
			n := &tree.Node{Path: "x", Type: tree.Regular, Size: c.size, Content: c.open}
			for _, before := range []int{0, contents.BufferSize - 5000, contents.BufferSize - 3, contents.BufferSize, contents.BufferSize + 1} {
				var b bytes.Buffer
				o := contents.NewOutput(&b)
				if _, err := o.Write(make([]byte, before)); err != nil {
					t.Fatal(err)
				}
				err := o.Copy(n)
				if !errors.Is(err, c.want) || (c.want == nil) != (err == nil) {
					t.Errorf("behind %d bytes: %v, want %v", before, err, c.want)
				}
				if err := o.Flush(); err != nil {
					t.Fatal(err)
				}
				got := string(b.Bytes()[before:])
				if c.want == nil && got != "hello" || len(got) > int(c.size) || o.Size != int64(b.Len()) {
					t.Errorf("behind %d bytes: copied %q, Size is %d of %d", before, got, o.Size, b.Len())
				}
			}
		})
	}
}

func TestCopyNothing(t *testing.T) {
	if err := contents.NewOutput(nil).Copy(&tree.Node{Type: tree.Regular}); err != nil {
		t.Error(err)
	}
	r, err := contents.Open(&tree.Node{Type: tree.Regular})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := r.Read(make([]byte, 2)); n != 0 || !errors.Is(err, io.EOF) {
		t.Errorf("Read: %d, %v", n, err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

type full int

func (f full) Write([]byte) (int, error) { return int(f), nil }

func TestCopyWriteError(t *testing.T) {
	large := make([]byte, contents.BufferSize)
	n := &tree.Node{Type: tree.Regular, Size: int64(len(large)), Content: tree.Bytes(large)}
	o := contents.NewOutput(full(1))
	if err := o.Copy(n); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("Copy: %v", err)
	}
	o = contents.NewOutput(full(1))
	if k, err := o.Write(make([]byte, len(large)+1)); k != len(large) || !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("Write: %d, %v", k, err)
	}
}
