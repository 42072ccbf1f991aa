package bootstrap

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// maxStanza bounds one deb822 paragraph in bytes. A Release file is one
// paragraph of about 200 kB, the longest known of a Packages file 40 kB.
const maxStanza = 16 << 20

// field is one deb822 field. Name is in lower case; value holds the text after
// the colon without surrounding blanks, continuation lines joined by newlines
// and without their first blank. Both are valid until the next Scan.
type field struct{ name, value []byte }

// stanzaScanner reads deb822 paragraphs (deb822(5)) one after the other from a
// stream, holding one at a time.
type stanzaScanner struct {
	r        *bufio.Reader
	buf      []byte
	spans    []fieldSpan
	fields   []field
	line     int
	comments bool // lines starting with # are skipped (sources files, not indexes)
	err      error
}

// fieldSpan is a field as offsets, because buf moves while it grows.
type fieldSpan struct{ name, value, end int }

func newStanzaScanner(r io.Reader) *stanzaScanner {
	return &stanzaScanner{r: bufio.NewReaderSize(r, 256<<10)}
}

// scan moves to the next paragraph that has a field; false at the end of the
// stream or at an error.
func (s *stanzaScanner) scan() bool {
	if s.err != nil {
		return false
	}
	s.buf, s.spans = s.buf[:0], s.spans[:0]
	for {
		line, err := s.readLine()
		if err != nil && !errors.Is(err, io.EOF) {
			s.err = fmt.Errorf("read line %d: %w", s.line, err)
			return false
		}
		atEnd := err != nil
		if !atEnd || len(line) > 0 {
			done, aerr := s.add(line)
			if aerr != nil {
				s.err = fmt.Errorf("line %d: %w", s.line, aerr)
				return false
			}
			if done {
				return s.finish()
			}
		}
		if atEnd {
			s.err = io.EOF
			return len(s.spans) > 0 && s.finish()
		}
	}
}

// readLine returns the next line without its end. The bytes are valid until
// the next call.
func (s *stanzaScanner) readLine() ([]byte, error) {
	line, err := s.r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		long := bytes.Clone(line)
		for errors.Is(err, bufio.ErrBufferFull) {
			line, err = s.r.ReadSlice('\n')
			if len(long)+len(line) > maxStanza {
				return nil, errors.New("line too long")
			}
			long = append(long, line...)
		}
		line = long
	}
	s.line++
	line = bytes.TrimSuffix(line, []byte("\n"))
	return bytes.TrimSuffix(line, []byte("\r")), err
}

// add takes one line into the current paragraph; done means that the line
// ended it.
func (s *stanzaScanner) add(line []byte) (done bool, err error) {
	trimmed := bytes.Trim(line, " \t")
	switch {
	case len(trimmed) == 0:
		return len(s.spans) > 0, nil
	case s.comments && line[0] == '#':
		return false, nil
	case len(s.buf)+len(line) > maxStanza:
		return false, fmt.Errorf("paragraph larger than %d bytes", maxStanza)
	case line[0] == ' ' || line[0] == '\t':
		if len(s.spans) == 0 {
			return false, errors.New("continuation without a field")
		}
		s.buf = append(s.buf, '\n')
		s.buf = append(s.buf, bytes.TrimRight(line[1:], " \t")...)
		s.spans[len(s.spans)-1].end = len(s.buf)
		return false, nil
	}
	return false, s.addField(line)
}

// addField starts a new field from its first line.
func (s *stanzaScanner) addField(line []byte) error {
	colon := bytes.IndexByte(line, ':')
	if colon <= 0 || bytes.ContainsAny(line[:colon], " \t") {
		return fmt.Errorf("no field name in %.60q", line)
	}
	span := fieldSpan{name: len(s.buf)}
	for _, c := range line[:colon] {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		s.buf = append(s.buf, c)
	}
	span.value = len(s.buf)
	s.buf = append(s.buf, bytes.Trim(line[colon+1:], " \t")...)
	span.end = len(s.buf)
	s.spans = append(s.spans, span)
	return nil
}

// finish turns offsets into slices.
func (s *stanzaScanner) finish() bool {
	s.fields = s.fields[:0]
	for _, p := range s.spans {
		s.fields = append(s.fields, field{s.buf[p.name:p.value], s.buf[p.value:p.end]})
	}
	return true
}

// get returns the value of the field with this lower-case name, "" when there
// is none.
func (s *stanzaScanner) get(name string) string {
	for _, f := range s.fields {
		if string(f.name) == name {
			return string(f.value)
		}
	}
	return ""
}

// error returns what stopped the scan, nil at the regular end.
func (s *stanzaScanner) error() error {
	if errors.Is(s.err, io.EOF) {
		return nil
	}
	return s.err
}
