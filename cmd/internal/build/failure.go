package build

import (
	"errors"
	"fmt"

	"cairn/sandbox"
)

// A Failure is an error with what to do about it. It crosses from the worker
// to its parent.
type Failure struct {
	What string // what failed and why: one line, lower case
	Hint string // what to do next, "" if there is nothing to say
	Code int    // exit status that the program ends with, 1 unless a hook chose it
}

// Error is What.
func (f *Failure) Error() string { return f.What }

// hinted is an error that knows what its user can do.
type hinted interface{ Hint() string }

// fail makes a Failure of err, keeping the hint and the status that an error
// below already has.
func fail(err error, what string, args ...any) error {
	if err == nil {
		return nil
	}
	f := asFailure(err)
	return &Failure{What: fmt.Sprintf(what, args...) + ": " + f.What, Hint: f.Hint, Code: f.Code}
}

// refuse is a new Failure with a hint.
func refuse(hint, what string, args ...any) error {
	return &Failure{What: fmt.Sprintf(what, args...), Hint: hint, Code: 1}
}

// asFailure turns any error into a Failure. nil stays nil.
func asFailure(err error) *Failure {
	if err == nil {
		return nil
	}
	f := &Failure{What: err.Error(), Code: 1}
	var inner *Failure
	if errors.As(err, &inner) {
		f.Hint, f.Code = inner.Hint, inner.Code
	}
	if f.Hint == "" {
		f.Hint = hintOf(err)
	}
	return f
}

// hintOf finds the hint that an error below carries.
func hintOf(err error) string {
	var h hinted
	var preflight *sandbox.PreflightError
	var start *sandbox.StartError
	switch {
	case errors.As(err, &h):
		return h.Hint()
	case errors.As(err, &preflight):
		return preflight.Hint
	case errors.As(err, &start):
		return start.Hint
	}
	return ""
}
