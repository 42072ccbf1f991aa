package build

import (
	"encoding/json"
	"os"
	"path/filepath"
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
	text, err := json.Marshal(seenDisk(w.plan, w.job.Seed))
	if err != nil {
		return err
	}
	for name, content := range map[string][]byte{"disk.json": text, "apt.conf": []byte(aptConf), "ca.pem": w.job.CA} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return fail(err, "write %s for the hooks", name)
		}
	}
	return nil
}

// certificates are the variables by which programs find the certificate of the
// recording server, which lies in dir.
func certificates(dir string) []string {
	var vars []string
	for _, name := range []string{"SSL_CERT_FILE", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO"} {
		vars = append(vars, name+"="+dir+"/ca.pem")
	}
	return vars
}
