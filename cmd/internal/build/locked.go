package build

import (
	"bytes"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"cairn/elements"
	"cairn/elements/bootstrap"
	"cairn/oci"
	"cairn/reproducibility"
	"cairn/reproducibility/lock"
	"cairn/reproducibility/record"
	"cairn/reproducibility/store"
)

// settle fixes the epoch and the seed once the inputs are known.
func (in *inputs) settle() error {
	dates := []time.Time{in.index.Date()}
	for _, i := range in.images {
		dates = append(dates, i.Created)
	}
	given := in.p.req.Epoch
	if given == nil && in.given != nil {
		t := time.Unix(in.given.Epoch, 0).UTC()
		given = &t
	}
	var err error
	if in.epoch, err = reproducibility.Epoch(given, dates...); err != nil {
		return err
	}
	l, err := in.lock()
	if err != nil {
		return err
	}
	if l.Base.Kind == lock.KindDeb { // not known yet; the releases stand for it
		l.Base = lock.Base{Kind: lock.KindNone}
	}
	l.Tools = nil
	plan, err := l.Plan()
	if err != nil {
		return fail(err, "lock")
	}
	in.seed = reproducibility.NewSeed(plan)
	return nil
}

// lock is what is known of the inputs by now.
func (in *inputs) lock() (*lock.Lock, error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	l := &lock.Lock{
		Version: lock.Version, Request: in.p.lockRequest(), Epoch: in.epoch.Unix(), Seed: in.seed.String(),
		Releases: in.releases(), Base: in.base(),
	}
	var err error
	if l.Elements, err = in.p.lockElements(); err != nil {
		return nil, err
	}
	if tools := in.sets["tools"]; tools != nil {
		l.Tools = &lock.Base{Kind: lock.KindDeb, Packages: lockPackages(tools)}
	}
	if in.server != nil {
		for _, e := range in.server.Entries() {
			l.Fetched = append(l.Fetched, lock.Fetched{URL: e.URL, Status: e.Status, Digest: e.Digest, Size: e.Size, Headers: e.Header})
		}
	}
	return l, nil
}

// lockRequest is the request as far as it decides bytes.
func (p *parent) lockRequest() lock.Request {
	r := p.req
	options := map[string]string{"release": r.Debian.Suite, "components": strings.Join(r.Debian.Components, " ")}
	for name, value := range map[string]string{
		"root-label": r.RootLabel, "mkfs-options": r.MkfsOptions, "block-device": p.planned.block.fromFile(), "image-mirror": r.Debian.ImageMirror, "disk-size": number(r.DiskSize), "extra-size": number(r.ExtraSize),
	} {
		if value != "" {
			options[name] = value
		}
	}
	if !r.Compress {
		options["compress"] = "no"
	}
	for line := range strings.Lines(elements.CanonicalEnv(r.Env, p.places())) {
		name, value, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "declare -x "), "=")
		options[name] = strings.Trim(value, `"`)
	}
	return lock.Request{
		Elements: slices.Clone(r.Elements), Arch: r.Arch, Types: slices.Sorted(slices.Values(r.Formats)),
		Packages: slices.Clone(r.Packages), Options: options,
	}
}

// fromFile is a configuration that the environment only names.
func (b *blockDevice) fromFile() string {
	if b.given {
		return string(b.text)
	}
	return ""
}

func number(n int64) string {
	if n == 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

// places are paths of the caller that nothing of an image may name.
func (p *parent) places() []elements.Place { return places(p.req) }

func places(r *Request) []elements.Place {
	return []elements.Place{{Path: r.Cwd, Name: "$PWD"}, {Path: r.Home, Name: "$HOME"}}
}

// lockElements are the selected elements with the digests of their files.
func (p *parent) lockElements() ([]lock.Element, error) {
	var list []lock.Element
	for _, e := range p.planned.selection.Elements {
		text, err := e.Digest()
		if err != nil {
			return nil, err
		}
		d, err := store.ParseDigest(text)
		if err != nil {
			return nil, err
		}
		origin := lock.OriginBuiltin
		if !e.Builtin {
			origin = filepath.Base(filepath.Dir(e.Dir))
		}
		list = append(list, lock.Element{Name: e.Name, Digest: d, Origin: origin})
	}
	return list, nil
}

// releases are the states of the archive's suites that are in use.
func (in *inputs) releases() []lock.Release {
	var list []lock.Release
	for _, p := range in.index.Pins() {
		list = append(list, lock.Release{URL: p.Canonical, Suite: p.Suite, Digest: p.InRelease, Size: p.Size, Date: p.Date.Unix(), Indexes: []lock.Index{}})
	}
	return list
}

// base is what the tree began with.
func (in *inputs) base() lock.Base {
	if len(in.images) > 0 {
		return lockImage(in.images[0])
	}
	if packages := in.sets["base"]; packages != nil {
		return lock.Base{Kind: lock.KindDeb, Packages: lockPackages(packages)}
	}
	return lock.Base{Kind: lock.KindNone}
}

func lockImage(i *oci.Image) lock.Base {
	b := lock.Base{Kind: lock.KindOCI, Reference: i.Reference, Digest: i.ManifestDigest}
	for _, l := range i.Layers {
		b.Layers = append(b.Layers, lock.Layer{Digest: l.Digest, Size: l.Size})
	}
	return b
}

func lockPackages(packages []bootstrap.Package) []lock.Package {
	var list []lock.Package
	for _, p := range packages {
		list = append(list, lock.Package{
			Name: p.Name, Version: p.Version, Arch: p.Architecture, URL: p.CanonicalURL(), Digest: p.Digest, Size: p.Size,
		})
	}
	return list
}

// checkLock refuses a lock of another request or of other elements.
func (in *inputs) checkLock() error {
	list, err := in.p.lockElements()
	if err != nil {
		return err
	}
	if err := in.given.Verify(in.p.lockRequest(), list); err != nil {
		return refuse("build without --locked to make a new lock", "lock file %s: %v", in.p.req.LockPath, err)
	}
	return nil
}

// pins are the states of the archive that the lock names.
func (in *inputs) pins() []bootstrap.PinnedRelease {
	var pins []bootstrap.PinnedRelease
	for _, r := range in.given.Releases {
		pins = append(pins, bootstrap.PinnedRelease{
			Canonical: r.URL, Suite: r.Suite, Components: in.p.req.Debian.Components,
			InRelease: r.Digest, Size: r.Size, Date: time.Unix(r.Date, 0).UTC(),
		})
	}
	return pins
}

// listed is what hooks may get from the network in a locked build.
func (in *inputs) listed() []record.Entry {
	var list []record.Entry
	for _, f := range in.given.Fetched {
		list = append(list, record.Entry{URL: f.URL, Status: f.Status, Digest: f.Digest, Size: f.Size, Header: maps.Clone(f.Headers)})
	}
	return list
}

// checkSet compares packages just resolved with those of the lock.
func (in *inputs) checkSet(purpose string, packages []bootstrap.Package) error {
	if in.given == nil {
		return nil
	}
	want := in.given.Base.Packages
	if purpose == "tools" && in.given.Tools != nil {
		want = in.given.Tools.Packages
	}
	byName := func(a, b lock.Package) int { return strings.Compare(a.Name+" "+a.Arch, b.Name+" "+b.Arch) }
	got := slices.SortedFunc(slices.Values(lockPackages(packages)), byName)
	if !slices.Equal(slices.SortedFunc(slices.Values(want), byName), got) {
		return refuse("the lock is of another version of this program: build without --locked to make a new one",
			"lock file %s: the packages of the %s are others than those that resolve now", in.p.req.LockPath, purpose)
	}
	return nil
}

// writeLock writes the lock file, or compares the outputs with the one that
// was given.
func (p *parent) writeLock(s *Summary) error {
	s.LockPath, s.Seed, s.Epoch = p.req.LockPath, p.inputs.seed.String(), p.inputs.epoch
	var outputs []lock.Output
	for _, o := range s.Outputs {
		d, err := store.FromHex(o.SHA256)
		if err != nil {
			return err
		}
		outputs = append(outputs, lock.Output{Format: o.Format, Disk: o.Disk, Size: o.Size, Digest: d})
	}
	if given := p.inputs.given; given != nil {
		if err := given.VerifyOutputs(outputs); err != nil {
			return refuse("the outputs are kept; this program, its elements' hooks or a tool in the image depend on something that the lock does not name",
				"lock file %s: %v", p.req.LockPath, strings.ReplaceAll(err.Error(), "\n", "; "))
		}
		return nil
	}
	l, err := p.inputs.lock()
	if err != nil {
		return err
	}
	l.Outputs = outputs
	b, err := l.Encode()
	if err != nil {
		return fail(err, "lock")
	}
	if err := replaceFile(bytes.NewReader(b), p.req.LockPath, 0o644); err != nil {
		return hintFull(fail(err, "write the lock file %s", p.req.LockPath), "--lock names another place")
	}
	return nil
}
