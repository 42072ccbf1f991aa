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
			for _, length := range []int{2, 5, 6, 100} {
				var got bytes.Buffer
				err := contents.Copy(&got, n, make([]byte, length))
				if !errors.Is(err, c.want) || (c.want == nil) != (err == nil) {
					t.Errorf("buffer of %d: %v, want %v", length, err, c.want)
				}
				if c.want == nil && got.String() != "hello" || got.Len() > int(c.size) {
					t.Errorf("buffer of %d: copied %q", length, got.String())
				}
			}
		})
	}
}

func TestCopyNothing(t *testing.T) {
	if err := contents.Copy(nil, &tree.Node{Type: tree.Regular}, make([]byte, 2)); err != nil {
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

type full struct{}

func (full) Write([]byte) (int, error) { return 0, io.ErrShortWrite }

func TestCopyWriteError(t *testing.T) {
	n := &tree.Node{Type: tree.Regular, Size: 1, Content: tree.Bytes([]byte("x"))}
	if err := contents.Copy(full{}, n, make([]byte, 2)); !errors.Is(err, io.ErrShortWrite) {
		t.Errorf("Copy: %v", err)
	}
}
