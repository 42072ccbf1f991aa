package boot

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strconv"
	"sync"
	"time"
)

// monitor is a connection to QEMU's machine protocol (QMP): lines of JSON,
// one answer to each command, events in between.
type monitor struct {
	mu   sync.Mutex
	conn net.Conn
	dec  *json.Decoder
	enc  *json.Encoder
}

// dialMonitor connects to QEMU's monitor as soon as it listens.
func (m *Machine) dialMonitor(ctx context.Context) (*monitor, error) {
	var conn net.Conn
	err := m.poll(ctx, 20*time.Millisecond, func() (bool, error) {
		var err error
		conn, err = net.Dial("unix", m.socketPath(monitorSocket))
		return err == nil, nil
	})
	if err != nil {
		return nil, err
	}
	q := &monitor{conn: conn, dec: json.NewDecoder(conn), enc: json.NewEncoder(conn)}
	var greeting struct {
		QMP *json.RawMessage
	}
	if err := q.within(ctx, func() error { return q.dec.Decode(&greeting) }); err != nil || greeting.QMP == nil {
		conn.Close()
		return nil, fmt.Errorf("read greeting of the monitor: %w", err)
	}
	return q, q.execute(ctx, "qmp_capabilities", nil)
}

func (q *monitor) close() { q.conn.Close() }

// within bounds the use of the connection by ctx, whose end is then the error.
func (q *monitor) within(ctx context.Context, use func() error) error {
	stop := context.AfterFunc(ctx, func() { q.conn.SetDeadline(time.Unix(1, 0)) }) //nolint:errcheck // a closed connection fails by itself
	defer stop()
	err := use()
	if err != nil && ctx.Err() != nil {
		return ctx.Err()
	}
	return err
}

// execute sends one command and decodes what it returns into result, if that
// is not nil.
func (q *monitor) execute(ctx context.Context, command string, result any, arguments ...any) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	request := map[string]any{"execute": command}
	if len(arguments) > 0 {
		request["arguments"] = arguments[0]
	}
	var answer json.RawMessage
	err := q.within(ctx, func() error {
		if err := q.enc.Encode(request); err != nil {
			return err
		}
		var err error
		answer, err = q.answer()
		return err
	})
	if err == nil && result != nil {
		err = json.Unmarshal(answer, result)
	}
	if err != nil {
		return fmt.Errorf("monitor command %s: %w", command, err)
	}
	return nil
}

// answer reads messages up to the answer of the last command.
func (q *monitor) answer() (json.RawMessage, error) {
	for {
		var message struct {
			Return json.RawMessage
			Error  *struct{ Desc string }
		}
		if err := q.dec.Decode(&message); err != nil {
			return nil, err
		}
		if message.Error != nil {
			return nil, errors.New(message.Error.Desc)
		}
		if message.Return != nil {
			return message.Return, nil
		}
	}
}

// A line of "info usernet":
//
//	TCP[HOST_FORWARD]  12       127.0.0.1 39241  169.254.169.15    22     0     0
var forward = regexp.MustCompile(`TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)`)

// forwardedPort is the port of this host that leads to the guest's ssh
// server. The kernel chose it, so that no two machines can meet on one.
func (q *monitor) forwardedPort(ctx context.Context) (int, error) {
	var text string
	err := q.execute(ctx, "human-monitor-command", &text, map[string]string{"command-line": "info usernet"})
	if err != nil {
		return 0, err
	}
	found := forward.FindStringSubmatch(text)
	if found == nil {
		return 0, fmt.Errorf("find forwarded port: not in %q", text)
	}
	return strconv.Atoi(found[1])
}
