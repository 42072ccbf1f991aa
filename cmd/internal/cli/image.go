package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"cairn/cmd/internal/build"
	"cairn/sandbox"
)

// gib and mib are the units of --image-size and --image-extra-size.
const (
	mib = 1 << 20
	gib = 1 << 30
)

// diskImageCreate is the personality disk-image-create.
func diskImageCreate(ctx context.Context, p *program) error {
	return p.buildImage(ctx, &flags{}, "disk-image-create", p.args)
}

// buildImage parses the options of `cairn build` or disk-image-create and builds.
func (p *program) buildImage(ctx context.Context, f *flags, name string, args []string) error {
	names, err := getopt(name, f.options(), args)
	if err != nil {
		fmt.Fprintln(p.stderr, err)
		return errSilent(exitFailure)
	}
	switch {
	case f.help:
		p.help(f, name)
		return nil
	case f.version:
		fmt.Fprintln(p.stdout, Version)
		return nil
	}
	if len(names) == 0 {
		fmt.Fprintln(p.stderr, "ERROR: At least one distribution root element must be specified")
		return errSilent(exitFailure)
	}
	req, err := p.request(f, names)
	if err != nil {
		return err
	}
	return p.run(ctx, f, req)
}

// help prints what can be said on the command line.
func (p *program) help(f *flags, name string) {
	fmt.Fprintf(p.stdout, "Usage: %s [OPTION]... [ELEMENT]...\n\nBuilds a disk image from diskimage-builder elements, without root.\n%s", name, commonHelp)
	if f.cairn {
		fmt.Fprint(p.stdout, strings.TrimPrefix(cairnHelp, "\n"))
	}
}

// request gathers everything that the build depends on.
func (p *program) request(f *flags, names []string) (*build.Request, error) {
	r := &build.Request{
		Arch: f.arch, Output: f.output, Cwd: p.cwd, Home: p.home, Formats: f.types, Compress: !f.plainQcow2,
		Packages: f.packages, Store: p.storeDir(f.imageCache), WorkParent: p.value("TMP_DIR", p.value("TMPDIR", "/tmp")),
		Tmpfs: f.tmpfs, Trace: f.trace, Offline: f.offline || p.flagSet("DIB_OFFLINE"),
		RootLabel: f.rootLabel, KeepOld: !f.cairn && !p.flagSet("OVERWRITE_OLD_IMAGE"),
		Now: p.now(), Host: p.sandboxHost(), Network: transport, Version: Version, Env: p.all, Args: p.args,
	}
	if r.Arch == "" {
		r.Arch = p.arch()
	}
	r.Elements = p.elementNames(f, names)
	r.ElementPaths = filepath.SplitList(p.value("ELEMENTS_PATH", ""))
	if r.RootLabel == "" {
		r.RootLabel = p.value("ROOT_LABEL", "")
	}
	r.MkfsOptions = p.mkfsOptions(f)
	for _, step := range []func(*flags, *build.Request) error{p.outputs, p.sizes, p.epoch, p.checksums, p.debian, p.lock} {
		if err := step(f, r); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// mkfsOptions are those of the root file system, as diskimage-builder gives
// them to mkfs: the journal's size to ext4 alone. Journal and growth have
// defaults of their own here.
func (p *program) mkfsOptions(f *flags) string {
	var words []string
	if n := cmp.Or(f.onlineResize, p.value("MAX_ONLINE_RESIZE", "")); n != "" {
		words = append(words, "-E", "resize="+n)
	}
	if n := cmp.Or(f.journalSize, p.value("DIB_JOURNAL_SIZE", "")); n != "" && p.value("FS_TYPE", "ext4") == "ext4" {
		words = append(words, "-J", "size="+n)
	}
	return strings.Join(append(words, strings.Fields(f.mkfsOptions)...), " ")
}

// transport fetches through the proxies of the environment, if there are any.
// It keeps a connection for each file that is fetched at a time.
func transport() *http.Transport {
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 30 * time.Second}).DialContext,
		ForceAttemptHTTP2:     true,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       90 * time.Second,
		TLSHandshakeTimeout:   10 * time.Second,
		ExpectContinueTimeout: time.Second,
	}
}

// elementNames puts base first unless it was refused.
func (p *program) elementNames(f *flags, names []string) []string {
	if f.skipBase || p.flagSet("SKIP_BASE") || slices.Contains(names, "base") {
		return names
	}
	return append([]string{"base"}, names...)
}

// outputs settles the formats and the output's name: NAME.raw with the only
// format raw means NAME.
func (p *program) outputs(_ *flags, r *build.Request) error {
	if len(r.Formats) == 0 {
		r.Formats = []string{"qcow2"}
	}
	if r.Output == "" {
		r.Output = p.value("IMAGE_NAME", "image")
	}
	if len(r.Formats) == 1 {
		r.Output = strings.TrimSuffix(r.Output, "."+build.Suffix(r.Formats[0]))
	}
	named := map[string]string{}
	for _, format := range r.Formats {
		if !slices.Contains(build.Formats(), format) {
			return &build.Failure{
				What: fmt.Sprintf("option -t: format %q is not one of %s", format, strings.Join(build.Formats(), ", ")), Code: exitFailure,
				Hint: "qemu-img convert makes other formats from NAME.raw",
			}
		}
		suffix := build.Suffix(format)
		switch other, ok := named[suffix]; {
		case other == format:
			return fmt.Errorf("option -t: format %s is named twice", format)
		case ok:
			return fmt.Errorf("option -t: %s and %s would both be NAME.%s", other, format, suffix)
		}
		named[suffix] = format
	}
	return nil
}

func (p *program) sizes(f *flags, r *build.Request) (err error) {
	if f.imageSize == "" {
		f.imageSize = p.value("DIB_IMAGE_SIZE", "")
	}
	if f.extraSize == "" {
		f.extraSize = p.value("DIB_IMAGE_EXTRA_SIZE", "")
	}
	if r.DiskSize, err = sizeOf("image-size", f.imageSize, gib); err != nil {
		return err
	}
	r.ExtraSize, err = sizeOf("image-extra-size", f.extraSize, mib)
	return err
}

// epoch reads the time stamp of the image's files, if one is given.
func (p *program) epoch(f *flags, r *build.Request) error {
	text, from := f.epoch, "option --source-date-epoch"
	if text == "" {
		text, from = p.value("SOURCE_DATE_EPOCH", ""), "SOURCE_DATE_EPOCH"
	}
	if text == "" {
		return nil
	}
	seconds, err := strconv.ParseInt(text, 10, 64)
	if err != nil || seconds < 0 {
		return fmt.Errorf("%s: %q is not a number of seconds since 1970", from, text)
	}
	t := time.Unix(seconds, 0).UTC()
	r.Epoch = &t
	return nil
}

func (p *program) checksums(f *flags, r *build.Request) error {
	v := p.value("DIB_CHECKSUM", "0")
	if f.checksum {
		v = "1"
	}
	for _, kind := range []string{"md5", "sha256"} {
		if v == "1" || strings.Contains(v, kind) {
			r.Checksums = append(r.Checksums, kind)
		}
	}
	return nil
}

// debian says where packages come from.
func (p *program) debian(f *flags, r *build.Request) error {
	d := build.Debian{
		Suite:          p.value("DIB_RELEASE", "bookworm"),
		Mirror:         p.value("DIB_DEBIAN_DISTRIBUTION_MIRROR", p.value("DIB_DISTRIBUTION_MIRROR", "")),
		SecurityMirror: p.value("DIB_DEBIAN_SECURITY_MIRROR", ""),
		ImageMirror:    f.mirror,
		Components:     strings.FieldsFunc(p.value("DIB_DEBIAN_COMPONENTS", "main"), func(c rune) bool { return c == ',' || c == ' ' }),
		AllowExpired:   f.expired || p.flagSet("DIB_ALLOW_EXPIRED_RELEASE"),
		HostSources:    readAll("/etc/apt/sources.list", "/etc/apt/sources.list.d/*.list", "/etc/apt/sources.list.d/*.sources"),
	}
	d.Keyring = firstFile(build.Keyrings())
	if path := p.value("DIB_APT_KEYRING", ""); path != "" {
		b, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("DIB_APT_KEYRING: %w", err)
		}
		d.Keyring = b
	}
	r.Debian = d
	return nil
}

// firstFile is the content of the first of the named files that can be read.
func firstFile(names []string) []byte {
	for _, name := range names {
		if b, err := os.ReadFile(name); err == nil {
			return b
		}
	}
	return nil
}

// lock reads the lock file for a locked build, or says where the new one goes.
func (p *program) lock(f *flags, r *build.Request) error {
	r.LockPath = f.lockFile
	if r.LockPath == "" {
		r.LockPath = r.Output + ".lock.json"
	}
	r.LockPath = p.abs(r.LockPath)
	if !f.locked {
		return nil
	}
	b, err := os.ReadFile(r.LockPath)
	if err != nil {
		return &build.Failure{
			What: "read the lock file: " + err.Error(), Code: exitFailure,
			Hint: "build once without --locked to make one, or name it with --lock",
		}
	}
	r.Locked = b
	return nil
}

// sandboxHost is what the sandbox has to know of this machine and user.
func (p *program) sandboxHost() sandbox.Host {
	read := func(name string) []byte {
		b, err := os.ReadFile(name)
		if err != nil {
			return nil // no ranges: the preflight says so
		}
		return b
	}
	return sandbox.Host{
		UID: p.uid, GID: p.gid, User: p.user, SubUID: read("/etc/subuid"), SubGID: read("/etc/subgid"), UIDMap: read("/proc/self/uid_map"), GIDMap: read("/proc/self/gid_map"),
		NewUIDMap: findTool("newuidmap"), NewGIDMap: findTool("newgidmap"),
	}
}

// run builds and shows how it goes.
func (p *program) run(ctx context.Context, f *flags, r *build.Request) error {
	show, log, err := p.display(f)
	if err != nil {
		return err
	}
	if log != nil {
		defer log.Close()
	}
	summary, err := build.Run(ctx, r, show.event)
	if live, ok := show.(*liveDisplay); ok && err != nil {
		live.dumpTail()
	}
	show.close()
	if err != nil {
		return err
	}
	if !f.cairn {
		show.event(build.Event{Kind: build.Message, Text: "Build completed successfully"})
	}
	report(p.stdout, summary)
	return nil
}

// display chooses how the build is shown.
func (p *program) display(f *flags) (display, io.Closer, error) {
	quiet := p.flagSet("DIB_QUIET")
	stamp := !p.flagSet("DIB_NO_TIMESTAMP")
	if f.logfile != "" {
		log, err := os.OpenFile(p.abs(f.logfile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o666)
		if err != nil {
			return nil, nil, fmt.Errorf("option --logfile: %w", err)
		}
		if _, set := p.env("DIB_QUIET"); !set {
			fmt.Fprintln(p.stdout, "Output logs going to:", f.logfile)
			return &plainDisplay{w: log, clock: p.now, stamp: true}, log, nil
		}
		return teeDisplay{&plainDisplay{w: log, clock: p.now, stamp: true}, &plainDisplay{w: p.stderr, clock: p.now, stamp: stamp, quiet: quiet}}, log, nil
	}
	if p.tty && !quiet {
		return &liveDisplay{w: p.stderr, clock: p.now, width: p.width, verbose: f.trace > 0}, nil, nil
	}
	return &plainDisplay{w: p.stderr, clock: p.now, stamp: stamp, quiet: quiet}, nil, nil
}

// teeDisplay shows the same in two places.
type teeDisplay [2]display

func (t teeDisplay) event(e build.Event) {
	for _, d := range t {
		d.event(e)
	}
}

func (t teeDisplay) close() {
	for _, d := range t {
		d.close()
	}
}
