package bootstrap

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"cairn/reproducibility/store"
)

// enoughProgress is how many bytes a failed try must have brought for the
// tries to be counted anew.
const enoughProgress = 64 << 10

// maxWait bounds the wait between two tries, also what a server may ask for.
const maxWait = 30 * time.Second

// fetcher brings files of known digest into the store.
type fetcher struct {
	config Config
	mu     sync.Mutex // guards progress and the callback
}

func newFetcher(config Config) *fetcher { return &fetcher{config: config} }

// meter counts the progress of one set of files.
type meter struct {
	f *fetcher
	p Progress
}

func (m *meter) add(name string, files int, bytes int64) {
	m.f.mu.Lock()
	defer m.f.mu.Unlock()
	m.p.Files += files
	m.p.Bytes += bytes
	m.p.Name = name
	if m.f.config.Progress != nil {
		m.f.config.Progress(m.p)
	}
}

// fetchAll brings the blobs that the store lacks into it.
func (f *fetcher) fetchAll(ctx context.Context, blobs []Blob) error {
	var missing []Blob
	m := &meter{f: f}
	seen := make(map[store.Digest]bool)
	for _, b := range blobs {
		if seen[b.Digest] || f.config.Store.Has(b.Digest) {
			continue
		}
		seen[b.Digest] = true
		missing = append(missing, b)
		m.p.TotalBytes += b.Size
	}
	if len(missing) == 0 {
		return ctx.Err()
	}
	if f.config.Client == nil {
		return &MissingError{URL: missing[0].Canonical, Digest: missing[0].Digest}
	}
	m.p.TotalFiles = len(missing)
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(f.config.Transfer.Parallel)
	for _, b := range missing {
		group.Go(func() error { return f.fetch(ctx, b, m) })
	}
	return group.Wait()
}

// fetch brings one blob into the store: it tries again while that may help,
// goes on where an earlier try ended, and keeps nothing that is not verified.
func (f *fetcher) fetch(ctx context.Context, b Blob, m *meter) error {
	err := f.fetchFrom(ctx, b, b.URL, m)
	var failed *FetchError
	if b.fallback != "" && errors.As(err, &failed) && failed.Status == http.StatusNotFound {
		err = f.fetchFrom(ctx, b, b.fallback, m)
	}
	if err == nil {
		m.add(b.name, 1, 0)
	}
	return err
}

func (f *fetcher) fetchFrom(ctx context.Context, b Blob, url string, m *meter) error {
	resumed, err := f.download(ctx, b, url, m)
	var mismatch *store.MismatchError
	if resumed && errors.As(err, &mismatch) {
		_, err = f.download(ctx, b, url, m) // what was resumed may have been something else
	}
	if errors.As(err, &mismatch) {
		return &HashError{URL: withoutUser(url), Want: b.Digest, WantSize: b.Size, Err: mismatch}
	}
	return err
}

// download is fetchFrom without the second chance after a mismatch. It reports
// whether bytes of an earlier try were used.
func (f *fetcher) download(ctx context.Context, b Blob, url string, m *meter) (resumed bool, err error) {
	part, err := f.config.Store.PartialContext(ctx, "fetch "+string(b.Digest))
	if err != nil {
		return false, err
	}
	if f.config.Store.Has(b.Digest) { // somebody else was faster
		return false, f.config.Store.DiscardPartial(part)
	}
	d := &download{fetcher: f, blob: b, url: url, part: part, meter: m}
	if err := d.run(ctx); err != nil {
		d.unwind()
		var failed *FetchError
		if errors.As(err, &failed) && failed.Kind == FetchLength {
			_ = f.config.Store.DiscardPartial(part) // err says what is wrong
		} else {
			_ = part.Close() // what is in it is checked when it is used
		}
		return d.resumed, err
	}
	if _, err := f.config.Store.CommitPartial(ctx, part, b.Digest); err != nil {
		d.unwind()
		return d.resumed, err
	}
	return d.resumed, nil
}

// download is one file on its way.
type download struct {
	fetcher *fetcher
	blob    Blob
	url     string
	part    *os.File
	meter   *meter
	have    int64 // bytes in part
	counted int64 // bytes told to the meter
	resumed bool
}

// unwind takes back what was told to the meter.
func (d *download) unwind() {
	d.meter.add(d.blob.name, 0, -d.counted)
	d.counted = 0
}

// run tries until the file has its size.
func (d *download) run(ctx context.Context) error {
	info, err := d.part.Stat()
	if err != nil {
		return fmt.Errorf("resume download: %w", err)
	}
	if info.Size() <= d.blob.Size {
		d.set(info.Size())
		d.resumed = info.Size() > 0
	}
	transfer := d.fetcher.config.Transfer
	total := 0
	for try, wait := 1, transfer.Backoff; d.have < d.blob.Size || total == 0 && d.blob.Size == 0; try++ {
		total++
		before := d.have
		err := d.try(ctx)
		if err == nil {
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		var failed *FetchError
		if !errors.As(err, &failed) {
			return err
		}
		if d.have-before >= enoughProgress {
			try, wait = 0, transfer.Backoff
		}
		if failed.Tries = total; !retriable(failed) || try >= transfer.Tries {
			return err
		}
		if err := sleep(ctx, max(wait, min(failed.retryAfter, maxWait))); err != nil {
			return err
		}
		wait = min(2*wait, maxWait)
		d.resumed = d.resumed || d.have > 0
	}
	return nil
}

// set moves to n bytes in the file.
func (d *download) set(n int64) {
	d.have = n
	d.meter.add(d.blob.name, 0, n-d.counted)
	d.counted = n
}

// retriable reports whether another try may help.
func retriable(e *FetchError) bool {
	switch e.Kind {
	case FetchStatus:
		return e.Status == http.StatusRequestTimeout || e.Status == http.StatusTooManyRequests || e.Status >= 500
	case FetchLength:
		return false
	default:
		return true
	}
}

// sleep waits, or returns the error of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// try makes one request for the rest of the file and writes what comes.
func (d *download) try(ctx context.Context) error {
	ctx, w, stop := newWatch(ctx, d.fetcher.config.Transfer.Stall)
	defer stop()
	mirror := d.blob.mirror
	response, err := d.fetcher.get(ctx, d.url, mirror, d.have)
	if err != nil {
		return w.explain(err)
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusRequestedRangeNotSatisfiable || !d.continues(response) {
		d.set(0)
	}
	if response.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		return newFetchError(d.url, mirror, FetchCut, errors.New("the server refuses to resume"))
	}
	if n := response.ContentLength; n >= 0 && d.have+n != d.blob.Size {
		return newFetchError(d.url, mirror, FetchLength, fmt.Errorf("the file has %d bytes, the index says %d", d.have+n, d.blob.Size))
	}
	return d.receive(response.Body, w)
}

// continues reports whether the response goes on where the file ends.
func (d *download) continues(r *http.Response) bool {
	if r.StatusCode != http.StatusPartialContent {
		return d.have == 0
	}
	return strings.HasPrefix(r.Header.Get("Content-Range"), "bytes "+strconv.FormatInt(d.have, 10)+"-")
}

// receive copies body to the end of the file.
func (d *download) receive(body io.Reader, w *watch) error {
	if err := d.part.Truncate(d.have); err != nil {
		return fmt.Errorf("write download: %w", err)
	}
	buf := make([]byte, 128<<10)
	for {
		n, err := body.Read(buf)
		w.alive()
		if d.have+int64(n) > d.blob.Size {
			return newFetchError(d.url, d.blob.mirror, FetchLength, fmt.Errorf("the file has more than the %d bytes of the index", d.blob.Size))
		}
		if _, werr := d.part.WriteAt(buf[:n], d.have); werr != nil {
			return fmt.Errorf("write download: %w", werr)
		}
		d.set(d.have + int64(n))
		switch {
		case err == nil:
		case d.have == d.blob.Size:
			return nil
		case errors.Is(err, io.EOF):
			return newFetchError(d.url, d.blob.mirror, FetchCut, fmt.Errorf("the connection ended after %d of %d bytes", d.have, d.blob.Size))
		default:
			return w.explain(newFetchError(d.url, d.blob.mirror, FetchCut, err))
		}
	}
}

// get makes a request for url from a byte on and returns a response of success
// or one that says that the range is not satisfiable.
func (f *fetcher) get(ctx context.Context, url, mirror string, from int64) (*http.Response, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, fmt.Errorf("fetch %s: invalid URL", withoutUser(url))
	}
	request.Header.Set("Accept-Encoding", "identity") // no transparent decompression
	if from > 0 {
		request.Header.Set("Range", "bytes="+strconv.FormatInt(from, 10)+"-")
	}
	if user, password, ok := f.config.Auth.Find(url); ok && request.URL.User == nil {
		request.SetBasicAuth(user, password)
	}
	response, err := f.config.Client.Do(request)
	if err != nil {
		return nil, newFetchError(url, mirror, FetchUnreachable, bareError(err))
	}
	switch response.StatusCode {
	case http.StatusOK, http.StatusPartialContent:
		return response, nil
	case http.StatusRequestedRangeNotSatisfiable:
		if from > 0 {
			return response, nil
		}
	}
	defer response.Body.Close()
	e := newFetchError(url, mirror, FetchStatus, fmt.Errorf("the server answers %s", response.Status))
	e.Status = response.StatusCode
	if seconds, err := strconv.Atoi(response.Header.Get("Retry-After")); err == nil && seconds > 0 {
		e.retryAfter = time.Duration(min(seconds, 3600)) * time.Second
	}
	return nil, e
}

// fetchText fetches a small file of unknown digest into memory.
func (f *fetcher) fetchText(ctx context.Context, url, mirror string, limit int64) ([]byte, error) {
	if f.config.Client == nil {
		return nil, &MissingError{URL: withoutUser(url)}
	}
	transfer := f.config.Transfer
	for try, wait := 1, transfer.Backoff; ; try++ {
		data, err := f.tryText(ctx, url, mirror, limit)
		if err == nil {
			return data, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		var failed *FetchError
		if !errors.As(err, &failed) {
			return nil, err
		}
		if failed.Tries = try; !retriable(failed) || try >= transfer.Tries {
			return nil, err
		}
		if err := sleep(ctx, max(wait, min(failed.retryAfter, maxWait))); err != nil {
			return nil, err
		}
		wait = min(2*wait, maxWait)
	}
}

func (f *fetcher) tryText(ctx context.Context, url, mirror string, limit int64) ([]byte, error) {
	ctx, w, stop := newWatch(ctx, f.config.Transfer.Stall)
	defer stop()
	response, err := f.get(ctx, url, mirror, 0)
	if err != nil {
		return nil, w.explain(err)
	}
	defer response.Body.Close()
	var data []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := response.Body.Read(buf)
		w.alive()
		data = append(data, buf[:n]...)
		switch {
		case int64(len(data)) > limit:
			return nil, newFetchError(url, mirror, FetchLength, fmt.Errorf("the file has more than %d bytes", limit))
		case errors.Is(err, io.EOF):
			return data, nil
		case err != nil:
			return nil, w.explain(newFetchError(url, mirror, FetchCut, err))
		}
	}
}

// watch cancels a context when nothing has come for too long.
type watch struct {
	timer   *time.Timer
	stall   time.Duration
	stalled atomic.Bool
}

// newWatch returns the context to use. The caller stops the watch.
func newWatch(ctx context.Context, stall time.Duration) (context.Context, *watch, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	w := &watch{stall: stall}
	w.timer = time.AfterFunc(stall, func() {
		w.stalled.Store(true)
		cancel()
	})
	return ctx, w, func() {
		w.timer.Stop()
		cancel()
	}
}

func (w *watch) alive() { w.timer.Reset(w.stall) }

// explain turns an error into one of stalling, if that is its cause.
func (w *watch) explain(err error) error {
	var failed *FetchError
	if w.stalled.Load() && errors.As(err, &failed) {
		failed.Kind, failed.Status = FetchStalled, 0
		failed.Err = fmt.Errorf("no data for %v", w.stall)
	}
	return err
}

// newFetchError makes the error of one try.
func newFetchError(url, mirror string, kind FetchKind, err error) *FetchError {
	return &FetchError{URL: withoutUser(url), Mirror: withoutUser(mirror), Kind: kind, Tries: 1, Err: err}
}

// bareError takes off the layer that repeats method and URL.
func bareError(err error) error {
	type wrapper interface{ Timeout() bool }
	var w wrapper
	if inner := errors.Unwrap(err); inner != nil && errors.As(err, &w) {
		return inner
	}
	return err
}
