package build

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"cairn/reproducibility"
	"cairn/sandbox/shim"
)

// What hooks find in /dev/.cairn, which is never part of an image: the
// description of the disk to be, apt's settings for the build, and the
// certificate of the recording server.
const (
	seenTarget  = "/dev/.cairn"
	seenAptConf = seenTarget + "/apt.conf"
	outTarget   = seenShared + "/target" // the same for hooks outside
)

// aptConf are apt's settings during the build. The build has verified the
// archive's indexes, dates included, before it began; a rebuild from a lock
// uses the same ones later. A package is answered only when all of it has been
// verified, which takes as long as the mirror is slow.
const aptConf = `Acquire::Check-Valid-Until "false";
Acquire::Check-Date "false";
Acquire::Retries "2";
Acquire::http::Timeout "600";
`

// stageDisk writes these files.
func (w *worker) stageDisk() error {
	dir := filepath.Join(w.dirs.shared, "target")
	if err := makeImageDir(dir); err != nil {
		return err
	}
	disk, err := json.Marshal(w.disk())
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{"disk.json": disk, "apt.conf": []byte(aptConf), "ca.pem": w.job.CA} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return fail(err, "write %s for the hooks", name)
		}
	}
	return nil
}

// disk is what grub-probe says of the disk to be.
func (w *worker) disk() shim.Disk {
	seed := reproducibility.Seed(w.job.Seed)
	d := shim.Disk{Label: w.rootLabel(), UUID: uuidText(seed.UUID(reproducibility.Root)), FS: "ext4"}
	if w.hasTable() {
		d.PartMap, d.Partition = "msdos", 1
		d.PartUUID = fmt.Sprintf("%08x-01", seed.DiskSignature(reproducibility.Disk))
	}
	return d
}

// hasTable says whether the image is a partitioned disk.
func (w *worker) hasTable() bool { return slices.Contains(w.job.Names, "block-device-mbr") }

// certificates are the variables by which programs find the certificate of the
// recording server, which lies in dir.
func certificates(dir string) []string {
	var vars []string
	for _, name := range []string{"SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO"} {
		vars = append(vars, name+"="+dir+"/ca.pem")
	}
	return vars
}
