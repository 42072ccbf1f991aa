package reproducibility

import (
	"errors"
	"fmt"
	"strconv"
	"time"
)

// MaxEpoch is the latest epoch: what the 34 bits of an ext4 timestamp hold.
var MaxEpoch = time.Unix(1<<34-1-1<<31, 0).UTC()

// ErrNoEpoch tells that nothing says what the epoch of an image is.
var ErrNoEpoch = errors.New("no SOURCE_DATE_EPOCH and no dated input")

// Epoch returns the newest time that an image may show, in whole seconds UTC:
// the given one if it is not nil, else the latest of the inputs' dates, which
// are those of the signed Release files or of the base image. So it changes
// with the inputs and never by itself. The error is [ErrNoEpoch], or one about
// a time before 1970 or after [MaxEpoch].
func Epoch(given *time.Time, dates ...time.Time) (time.Time, error) {
	var epoch time.Time
	switch {
	case given != nil:
		epoch = *given
	case len(dates) == 0:
		return time.Time{}, ErrNoEpoch
	default:
		epoch = dates[0]
		for _, d := range dates[1:] {
			if d.After(epoch) {
				epoch = d
			}
		}
	}
	if epoch.Unix() < 0 || epoch.After(MaxEpoch) {
		return time.Time{}, fmt.Errorf("epoch %d is not between 1970-01-01 and %s", epoch.Unix(), MaxEpoch.Format(time.DateOnly))
	}
	return time.Unix(epoch.Unix(), 0).UTC(), nil
}

// ParseSourceDateEpoch returns the time that a value of the environment
// variable SOURCE_DATE_EPOCH stands for: decimal seconds since 1970
// (https://reproducible-builds.org/specs/source-date-epoch/, version 1.1).
func ParseSourceDateEpoch(value string) (time.Time, error) {
	seconds, err := strconv.ParseUint(value, 10, 63)
	if err != nil {
		return time.Time{}, fmt.Errorf("SOURCE_DATE_EPOCH %q is not a decimal number of seconds since 1970", value)
	}
	t := time.Unix(int64(seconds), 0)
	return Epoch(&t)
}
