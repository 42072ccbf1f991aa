// Package cli turns command lines into requests and what happens into words.
// It alone reads the environment, the clock, the user and the terminal.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"cairn/cmd/internal/build"
)

// Version of the program.
const Version = "0.1.0"

// Exit statuses. A hook's own status is passed on unchanged.
const (
	exitOK          = 0
	exitFailure     = 1   // anything that went wrong, wrong usage included
	exitInterrupted = 130 // ended by a signal
)

// errSilent ends a run with a status after everything has been said.
type errSilent int

func (e errSilent) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// Main runs the personality that the program was started by and returns the
// exit status.
func Main(args []string) int {
	p, err := thisProgram(args)
	if err != nil {
		fmt.Fprintln(os.Stderr, "cairn: error:", err)
		return exitFailure
	}
	ctx, stop := interruptible(p.stderr)
	defer stop()
	return p.status(p.dispatch(ctx))
}

// interruptible is a context that the first signal cancels. The second one
// ends the program on the spot; its worker dies with it.
func interruptible(stderr io.Writer) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	go func() {
		s, ok := <-signals
		if !ok {
			return
		}
		cancel(interrupted{s})
		fmt.Fprintf(stderr, "\ncairn: %s: cleaning up (once more to stop at once)\n", s)
		if _, ok := <-signals; ok {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // cannot fail
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(signals)
		cancel(nil)
	}
}

// interrupted is the cause of a context that a signal cancelled.
type interrupted struct{ signal os.Signal }

func (i interrupted) Error() string { return "stopped by " + i.signal.String() }

// dispatch calls what the program is called.
func (p *program) dispatch(ctx context.Context) error {
	if personality, ok := personalities()[p.name]; ok {
		return personality(ctx, p)
	}
	return p.cairn(ctx)
}

// status prints an error and returns the exit status it stands for.
func (p *program) status(err error) int {
	var silent errSilent
	var stopped interrupted
	var failure *build.Failure
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &silent):
		return int(silent)
	case errors.As(err, &stopped):
		fmt.Fprintln(p.stderr, "cairn: error:", err)
		return exitInterrupted
	}
	fmt.Fprintln(p.stderr, "cairn: error:", err)
	if errors.As(err, &failure) {
		if failure.Hint != "" {
			fmt.Fprintln(p.stderr, "cairn: hint:", failure.Hint)
		}
		return failure.Code
	}
	return exitFailure
}
