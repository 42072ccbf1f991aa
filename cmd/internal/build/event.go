package build

// An Event is what a build tells while it runs. Events come in order, from one
// goroutine.
type Event struct {
	Kind  EventKind
	Step  string // the phase or step under way
	Hook  string // the script under way, "" outside phases
	Text  string // a line of output or a message
	Done  int64  // of Progress: units done
	Total int64  // of Progress: units in all, 0 if unknown
	Unit  string // of Progress: "bytes", "packages" …
}

// EventKind says what an Event is about.
type EventKind uint8

// The kinds of events.
const (
	StepStarted EventKind = iota // Step has begun
	StepDone                     // Step has ended well
	HookStarted                  // Hook has begun
	HookDone                     // Hook has ended well
	Line                         // Text is a line that a hook or a tool printed
	Message                      // Text is said by the build itself
	Progress                     // Done of Total
)
