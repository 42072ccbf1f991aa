package oci

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"cairn/reproducibility/store"
)

const attempts = 4

// retrying calls f until it succeeds, fails for good, or has had its attempts.
func retrying[T any](ctx context.Context, delay time.Duration, f func() (T, error)) (T, error) {
	for n := 1; ; n++ {
		v, err := f()
		if err == nil || n == attempts || !isTemporary(err) || ctx.Err() != nil {
			return v, err
		}
		timer := time.NewTimer(delay)
		select {
		case <-ctx.Done():
			timer.Stop()
			return v, ctx.Err()
		case <-timer.C:
		}
		delay *= 2
	}
}

// isTemporary reports whether another attempt may help.
func isTemporary(err error) bool {
	var status *transport.Error
	var dns *net.DNSError
	var cert *tls.CertificateVerificationError
	switch {
	case errors.As(err, &status):
		return status.Temporary()
	case errors.As(err, &dns) && dns.IsNotFound, errors.As(err, &cert):
		return false
	default:
		return errors.Is(kindOf(err), ErrUnreachable) || errors.Is(err, io.ErrUnexpectedEOF)
	}
}

// layer brings one blob into the store. What an earlier run or attempt has
// left is continued.
func (p *puller) layer(ctx context.Context, l Layer, progress *progress) error {
	if have, err := p.o.Store.Stat(l.Digest); err == nil {
		if have != l.Size {
			return &store.MismatchError{Want: l.Digest, Got: l.Digest, WantSize: l.Size, GotSize: have}
		}
		progress.at(l.Digest, l.Size)
		return nil
	}
	var mismatch *store.MismatchError
	resumed, err := p.download(ctx, l, progress)
	if resumed && errors.As(err, &mismatch) { // what was left was not of this blob
		_, err = p.download(ctx, l, progress)
	}
	return err
}

// download fetches a blob by way of a partial file, and reports whether that
// had content before.
func (p *puller) download(ctx context.Context, l Layer, progress *progress) (resumed bool, err error) {
	f, err := p.o.Store.PartialContext(ctx, "oci blob "+string(l.Digest))
	if err != nil {
		return false, err
	}
	if p.o.Store.Has(l.Digest) { // somebody else fetched it while we waited
		progress.at(l.Digest, l.Size)
		return false, p.o.Store.DiscardPartial(f)
	}
	offset, err := f.Seek(0, io.SeekEnd)
	if err == nil && offset > l.Size {
		offset, err = 0, f.Truncate(0)
	}
	if err != nil {
		return false, errors.Join(fmt.Errorf("resume: %w", err), f.Close())
	}
	progress.at(l.Digest, offset)
	resumed = offset > 0
	_, err = retrying(ctx, p.o.RetryDelay, func() (struct{}, error) {
		return struct{}{}, p.transfer(ctx, l, f, &offset, progress)
	})
	if err != nil {
		return resumed, errors.Join(err, f.Close())
	}
	_, err = p.o.Store.CommitPartial(ctx, f, l.Digest)
	return resumed, err
}

// transfer fetches a blob from *offset on into f, and moves *offset along.
func (p *puller) transfer(ctx context.Context, l Layer, f *os.File, offset *int64, progress *progress) error {
	if *offset == l.Size {
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stall := time.AfterFunc(p.o.Stall, func() { cancel(errStalled) })
	defer stall.Stop()
	r, start, err := p.src.blob(ctx, l.Digest, l.Size, *offset)
	if err != nil {
		return cmp.Or(context.Cause(ctx), err)
	}
	defer r.Close()
	if start != *offset {
		*offset = start
		if err := f.Truncate(start); err != nil {
			return fmt.Errorf("start again: %w", err)
		}
	}
	buf := make([]byte, 256<<10)
	for {
		n, rerr := r.Read(buf)
		stall.Reset(p.o.Stall)
		if _, err := f.WriteAt(buf[:n], *offset); err != nil {
			return fmt.Errorf("write: %w", err)
		}
		*offset += int64(n)
		progress.at(l.Digest, *offset)
		switch {
		case *offset > l.Size:
			return errors.Join(&store.MismatchError{Want: l.Digest, WantSize: l.Size, GotSize: *offset}, f.Truncate(0))
		case errors.Is(rerr, io.EOF) && *offset < l.Size:
			return kind(ErrUnreachable, "connection ended after %d of %d bytes", *offset, l.Size)
		case errors.Is(rerr, io.EOF):
			return nil
		case rerr != nil && context.Cause(ctx) != nil:
			return context.Cause(ctx)
		case rerr != nil:
			return kind(ErrUnreachable, "read: %w", rerr)
		}
	}
}

var errStalled = errors.New("the registry sends nothing any more")
