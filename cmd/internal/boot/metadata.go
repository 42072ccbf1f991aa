package boot

import (
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"slices"
	"strings"
)

// Instance is what a cloud knows about one virtual machine and tells it.
type Instance struct {
	ID               string // e.g. a UUID for OpenStack, "i-…" for EC2
	Hostname         string
	KeyName          string
	PublicKey        string // a line of authorized_keys
	UserData         string // "" is none
	MAC              string // of the guest's network card
	AvailabilityZone string // "" is "nova"
}

// ec2UUID is a UUID and serial number by which guests know that they run in
// EC2: it begins with "ec2", and both are the same.
const ec2UUID = "ec2e1916-9099-7caf-fd21-012345abcdef"

// OpenStackSMBIOS are values for [Config.SMBIOS] by which a guest knows that
// it runs in OpenStack and has a metadata service.
func OpenStackSMBIOS() []string {
	return []string{"type=1,manufacturer=OpenStack Foundation,product=OpenStack Nova"}
}

// EC2SMBIOS are the same for EC2.
func EC2SMBIOS() []string {
	return []string{"type=1,manufacturer=Amazon EC2,product=t3.small,uuid=" + ec2UUID + ",serial=" + ec2UUID}
}

// File is a file that a metadata service or a seed disk holds. Its name is
// relative and slash separated.
type File struct {
	Name string
	Data []byte
}

func (i Instance) zone() string {
	if i.AvailabilityZone == "" {
		return "nova"
	}
	return i.AvailabilityZone
}

// OpenStack returns the files of OpenStack's metadata service and config
// drive, as of the version "latest". The network is described as one link
// with DHCP.
//
// Specification: https://docs.openstack.org/nova/latest/user/metadata.html.
func (i Instance) OpenStack() []File {
	meta := map[string]any{
		"uuid":              i.ID,
		"name":              i.Hostname,
		"hostname":          i.Hostname,
		"availability_zone": i.zone(),
		"launch_index":      0,
		"public_keys":       map[string]string{i.KeyName: i.PublicKey},
		"keys":              []map[string]string{{"name": i.KeyName, "type": "ssh", "data": i.PublicKey}},
		"devices":           []string{},
	}
	network := map[string]any{
		"links": []map[string]any{{
			"id": "tap0", "type": "ovs", "ethernet_mac_address": i.MAC, "mtu": 1500, "vif_id": "vif0",
		}},
		"networks": []map[string]any{{
			"id": "network0", "type": "ipv4_dhcp", "link": "tap0", "network_id": "network0",
		}},
		"services": []string{},
	}
	files := []File{
		{"openstack/latest/meta_data.json", encode(meta)},
		{"openstack/latest/network_data.json", encode(network)},
		{"openstack/latest/vendor_data.json", []byte("{}")},
	}
	if i.UserData != "" {
		files = append(files, File{"openstack/latest/user_data", []byte(i.UserData)})
	}
	return files
}

// NoCloud returns the files of a NoCloud seed, without a network
// configuration.
//
// Specification: https://docs.cloud-init.io/en/latest/reference/datasources/nocloud.html.
func (i Instance) NoCloud() []File {
	meta := encode(map[string]any{
		"instance-id":    i.ID,
		"local-hostname": i.Hostname,
		"public-keys":    []string{i.PublicKey},
	})
	user := i.UserData
	if user == "" {
		user = "#cloud-config\n{}\n"
	}
	return []File{{"meta-data", meta}, {"user-data", []byte(user)}}
}

// EC2 returns the files of one version of EC2's metadata service, relative to
// the version.
//
// Specification: https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-categories.html.
func (i Instance) EC2() []File {
	card := "meta-data/network/interfaces/macs/" + i.MAC + "/"
	text := func(name, value string) File { return File{name, []byte(value)} }
	identity := encode(map[string]string{
		"accountId": "000000000000", "architecture": "x86_64", "availabilityZone": i.zone(), "imageId": "ami-0",
		"instanceId": i.ID, "instanceType": "t3.small", "privateIp": guestAddress, "region": i.zone(),
	})
	files := []File{
		{"dynamic/instance-identity/document", identity}, // guests ask until they get it
		text("meta-data/ami-id", "ami-0"),
		text("meta-data/hostname", i.Hostname),
		text("meta-data/instance-id", i.ID),
		text("meta-data/instance-type", "t3.small"),
		text("meta-data/local-hostname", i.Hostname),
		text("meta-data/local-ipv4", guestAddress),
		text("meta-data/mac", i.MAC),
		text("meta-data/placement/availability-zone", i.zone()),
		text("meta-data/public-keys/0/openssh-key", i.PublicKey),
		text(card+"device-number", "0"),
		text(card+"interface-id", "eni-0"),
		text(card+"local-ipv4s", guestAddress),
		text(card+"mac", i.MAC),
		text(card+"subnet-ipv4-cidr-block", "169.254.169.0/24"),
		text(card+"vpc-id", "vpc-0"), // without it guests take this for EC2 Classic
	}
	if i.UserData != "" {
		files = append(files, text("user-data", i.UserData))
	}
	return files
}

// guestAddress is what QEMU's DHCP server gives to the only guest.
const guestAddress = "169.254.169.15"

// encode is JSON of values that cannot fail to be encoded.
func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("BUG: encode metadata: %v", err))
	}
	return b
}

// OpenStackService serves the instance's metadata as OpenStack does: its own
// tree, and EC2's beside it.
func OpenStackService(i Instance) http.Handler {
	return newService(slices.Concat(i.OpenStack(), versions(i.EC2(), "2009-04-04", "latest")), i.KeyName)
}

// EC2Service serves the instance's metadata as EC2 does, including the session
// tokens of its second version, which are handed out and never demanded.
func EC2Service(i Instance) http.Handler {
	s := newService(versions(i.EC2(), "2009-04-04", "2018-09-24", "2021-03-23", "latest"), i.KeyName)
	s.tokens = true
	return s
}

// versions puts the files below a folder for each version.
func versions(files []File, names ...string) []File {
	var all []File
	for _, name := range names {
		for _, f := range files {
			all = append(all, File{path.Join(name, f.Name), f.Data})
		}
	}
	return all
}

// service serves files and the listings of their folders.
type service struct {
	files   map[string][]byte
	keyName string // EC2 lists keys by number and name
	tokens  bool   // whether the second version of EC2's service is there
}

func newService(files []File, keyName string) *service {
	s := &service{files: make(map[string][]byte, len(files)), keyName: keyName}
	for _, f := range files {
		s.files[f.Name] = f.Data
	}
	return s
}

// ServeHTTP answers GET of a file or a folder, and PUT for a token.
func (s *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name := strings.Trim(path.Clean("/"+r.URL.Path), "/")
	if r.Method == http.MethodPut && name == "latest/api/token" && s.tokens {
		w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", r.Header.Get("X-Aws-Ec2-Metadata-Token-Ttl-Seconds"))
		w.Write([]byte("token")) //nolint:errcheck // the guest may hang up
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	body, ok := s.files[name]
	if !ok {
		body = s.list(name)
	}
	if body == nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", contentType(name))
	w.Write(body) //nolint:errcheck // the guest may hang up
}

func contentType(name string) string {
	if strings.HasSuffix(name, ".json") {
		return "application/json"
	}
	return "text/plain; charset=utf-8"
}

// list is the listing of a folder, one name a line, folders with a slash; nil
// when there is no such folder.
func (s *service) list(folder string) []byte {
	prefix := folder + "/"
	if folder == "" {
		prefix = ""
	}
	var names []string
	for name := range s.files {
		rest, ok := strings.CutPrefix(name, prefix)
		if !ok {
			continue
		}
		first, _, deeper := strings.Cut(rest, "/")
		if deeper {
			first += "/"
		}
		names = append(names, first)
	}
	if names == nil {
		return nil
	}
	slices.Sort(names)
	names = slices.Compact(names)
	if path.Base(folder) == "public-keys" {
		return []byte("0=" + s.keyName)
	}
	if prefix == "openstack/" {
		return []byte(strings.ReplaceAll(strings.Join(names, "\n"), "/", ""))
	}
	return []byte(strings.Join(names, "\n"))
}
