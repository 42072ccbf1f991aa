package blockdevice

import (
	"errors"
	"fmt"
)

// ErrUnsupported is wrapped by errors about what diskimage-builder can do and this package cannot.
var ErrUnsupported = errors.New("not supported yet")

// A ConfigError says what is wrong with a configuration, and where.
type ConfigError struct {
	Line int    // of the text, from 1 on; 0 when it is about the whole
	Node string // "partitioning", or with its name: "mkfs root_fs"; "" when there is none
	Key  string // "" when it is about the whole node
	Err  error
}

// Error names the line, node and key.
func (e *ConfigError) Error() string {
	text := "block device configuration"
	if e.Line > 0 {
		text += fmt.Sprintf(": line %d", e.Line)
	}
	for _, part := range []string{e.Node, e.Key} {
		if part != "" {
			text += ": " + part
		}
	}
	return text + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *ConfigError) Unwrap() error { return e.Err }
