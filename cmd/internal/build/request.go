package build

import (
	"net/http"
	"time"

	"cairn/sandbox"
)

// A Request is everything that a build depends on, as values: the library
// reads no environment, clock or user id.
type Request struct {
	Elements     []string // in the order of the command line, base included
	Arch         string   // Debian's name: amd64, arm64 …
	Output       string   // output path without its format's suffix
	Cwd          string   // the caller's working directory, absolute
	Home         string   // the caller's home directory, absolute or ""
	Formats      []string // of fsbuild.Formats
	Compress     bool     // compress the formats that can be
	Packages     []string // installed after install.d (-p)
	ElementPaths []string // searched before the built-in elements
	Store        string   // directory of the content store and the hooks' cache
	WorkParent   string   // the work directory is made in here
	Tmpfs        bool     // keep the work directory in memory
	Trace        int      // how often -x was given
	Offline      bool     // no network at all
	Locked       []byte   // the lock file to rebuild from, nil to make a new one
	LockPath     string   // where a new lock file goes
	RootLabel    string   // file-system label of the root, "" for the default
	MkfsOptions  string   // of the root file system, as mkfs has them
	DiskSize     int64    // bytes, 0 for minimal
	ExtraSize    int64    // free bytes to add to the minimal size
	Checksums    []string // "md5", "sha256": checksum files beside the outputs
	KeepOld      bool     // rename an existing output instead of replacing it
	Env          []string // NAME=value pairs of the caller that hooks may see
	Debian       Debian
	Epoch        *time.Time // SOURCE_DATE_EPOCH, nil to take it from the inputs
	Now          time.Time  // for validity checks and old outputs' names; never reaches an image
	Host         sandbox.Host
	Network      func() *http.Transport // makes what is fetched with, proxies included
	Version      string                 // of this program
	Args         []string               // the command line, without the program
}

// Debian is where Debian packages come from and what the image says of it.
type Debian struct {
	Suite          string            // codename or suite name, as DIB_RELEASE has it
	Mirror         string            // the build's mirror of the main archive, "" to take it from HostSources
	SecurityMirror string            // the build's mirror of the security archive, likewise
	ImageMirror    string            // main archive as the image's sources.list names it, "" for the default
	Components     []string          // "main" …
	Keyring        []byte            // OpenPGP keys that may sign the archive
	AllowExpired   bool              // accept a Release file past its Valid-Until
	HostSources    map[string][]byte // the build host's apt source files by name
}

// A Summary tells what a build made.
type Summary struct {
	Outputs     []Output
	Steps       []StepTime
	LockPath    string
	Seed        string
	Epoch       time.Time
	GrowLimit   int64 // bytes up to which the root file system can be grown
	MinimalSize int64 // bytes of the root file system as written
}

// An Output is one finished file.
type Output struct {
	Path      string
	Disk      string // name, "" for the image
	Format    string
	Size      int64 // bytes
	Allocated int64 // bytes in use on the file system
	SHA256    string
}

// A StepTime is how long one step of the build took.
type StepTime struct {
	Name    string
	Elapsed time.Duration
}
