package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"
)

// Serial is what a guest has written to its first serial port, COM1 or ttyS0.
type Serial struct {
	m *Machine
}

// Serial returns the machine's serial console.
func (m *Machine) Serial() Serial { return Serial{m} }

// Bytes returns everything that was written so far. It is empty once the
// machine has been closed.
func (s Serial) Bytes() []byte {
	b, err := os.ReadFile(s.m.path(serialName))
	if err != nil {
		return nil // QEMU has not made it yet, or it is gone again
	}
	return b
}

// Wait waits until text stands on the console at or after the byte offset
// from, and returns the offset behind it. The error tells what the console
// said last.
func (s Serial) Wait(ctx context.Context, from int, text string) (int, error) {
	end := 0
	err := s.m.poll(ctx, 100*time.Millisecond, func() (bool, error) {
		b := s.Bytes()
		if len(b) < from {
			return false, nil
		}
		i := bytes.Index(b[from:], []byte(text))
		end = from + i + len(text)
		return i >= 0, nil
	})
	if err != nil {
		return 0, s.m.explain(fmt.Sprintf("wait for %q on the serial console", text), err)
	}
	return end, nil
}

// Tail returns the last lines of the console, without control characters
// other than line ends.
func (s Serial) Tail(lines int) string { return tail(s.Bytes(), lines) }

func tail(b []byte, lines int) string {
	text := strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f {
			return -1
		}
		return r
	}, strings.ToValidUTF8(string(b), "?"))
	all := strings.Split(strings.TrimRight(text, "\n"), "\n")
	if len(all) > lines {
		all = all[len(all)-lines:]
	}
	return strings.Join(all, "\n")
}

// tailBuffer keeps the last limit bytes that were written to it.
type tailBuffer struct {
	limit int
	mu    sync.Mutex
	b     []byte
}

func (t *tailBuffer) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if len(t.b) > t.limit {
		t.b = append([]byte(nil), t.b[len(t.b)-t.limit:]...)
	}
	return len(p), nil
}

func (t *tailBuffer) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.b)
}

// SaveSerial copies the transcript to a file, replacing it.
func (m *Machine) SaveSerial(path string) error {
	b := m.Serial().Bytes()
	if b == nil {
		return fmt.Errorf("save serial transcript: %w", errors.New("there is none"))
	}
	if err := os.WriteFile(path, b, 0o644); err != nil {
		return fmt.Errorf("save serial transcript: %w", err)
	}
	return nil
}
