package boot

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"testing"
)

var example = Instance{
	ID: "i-1", Hostname: "host", KeyName: "mykey", PublicKey: "ssh-ed25519 AAAA me",
	UserData: "#!/bin/sh\n", MAC: DefaultMAC,
}

func TestServices(t *testing.T) {
	openStack, ec2 := OpenStackService(example), EC2Service(example)
	plain := example
	plain.UserData = ""
	card := "/latest/meta-data/network/interfaces/macs/" + DefaultMAC
	tests := []struct {
		name    string
		service http.Handler
		method  string
		path    string
		status  int
		body    string
	}{
		{"openstack versions", openStack, "GET", "/openstack", 200, "latest"},
		{"openstack versions, slash", openStack, "GET", "/openstack/", 200, "latest"},
		{"openstack user data", openStack, "GET", "/openstack/latest/user_data", 200, "#!/bin/sh\n"},
		{"openstack no user data", OpenStackService(plain), "GET", "/openstack/latest/user_data", 404, "404 page not found\n"},
		{"openstack other version", openStack, "GET", "/openstack/2012-08-10/meta_data.json", 404, "404 page not found\n"},
		{"openstack as ec2", openStack, "GET", "/latest/meta-data/public-keys", 200, "0=mykey"},
		{"openstack root", openStack, "GET", "/", 200, "2009-04-04/\nlatest/\nopenstack/"},
		{"openstack token", openStack, "PUT", "/latest/api/token", 405, "method not allowed\n"},
		{"root", ec2, "GET", "/", 200, "2009-04-04/\n2018-09-24/\n2021-03-23/\nlatest/"},
		{"ec2 id", ec2, "GET", "/2009-04-04/meta-data/instance-id", 200, "i-1"},
		{"ec2 keys", ec2, "GET", "/latest/meta-data/public-keys/", 200, "0=mykey"},
		{"ec2 key", ec2, "GET", "/latest/meta-data/public-keys/0/", 200, "openssh-key"},
		{"ec2 key itself", ec2, "GET", "/latest/meta-data/public-keys/0/openssh-key", 200, "ssh-ed25519 AAAA me"},
		{"ec2 cards", ec2, "GET", "/latest/meta-data/network/interfaces/macs/", 200, DefaultMAC + "/"},
		{"ec2 card", ec2, "GET", card, 200, "device-number\ninterface-id\nlocal-ipv4s\nmac\nsubnet-ipv4-cidr-block\nvpc-id"},
		{"ec2 user data", ec2, "GET", "/latest/user-data", 200, "#!/bin/sh\n"},
		{"ec2 token", ec2, "PUT", "/latest/api/token", 200, "token"},
		{"ec2 identity", ec2, "GET", "/latest/dynamic/instance-identity", 200, "document"},
		{"ec2 nothing", ec2, "GET", "/latest/nothing", 404, "404 page not found\n"},
		{"climbing", ec2, "GET", "/latest/../../etc/passwd", 404, "404 page not found\n"},
		{"post", ec2, "POST", "/latest/user-data", 405, "method not allowed\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			w := httptest.NewRecorder()
			test.service.ServeHTTP(w, httptest.NewRequest(test.method, test.path, nil))
			if w.Code != test.status || w.Body.String() != test.body {
				t.Errorf("%s %s = %d %q, want %d %q", test.method, test.path, w.Code, w.Body, test.status, test.body)
			}
		})
	}
}

func TestOpenStackMetadata(t *testing.T) {
	files := make(map[string][]byte)
	for _, f := range example.OpenStack() {
		files[f.Name] = f.Data
	}
	var meta struct {
		UUID       string
		Hostname   string
		PublicKeys map[string]string `json:"public_keys"`
	}
	if err := json.Unmarshal(files["openstack/latest/meta_data.json"], &meta); err != nil {
		t.Fatal(err)
	}
	if meta.UUID != "i-1" || meta.Hostname != "host" || meta.PublicKeys["mykey"] != example.PublicKey {
		t.Errorf("meta_data.json = %+v", meta)
	}
	var network struct {
		Links []struct {
			ID  string
			MAC string `json:"ethernet_mac_address"`
		}
		Networks []struct{ Type, Link string }
	}
	if err := json.Unmarshal(files["openstack/latest/network_data.json"], &network); err != nil {
		t.Fatal(err)
	}
	if len(network.Links) != 1 || network.Links[0].MAC != DefaultMAC ||
		len(network.Networks) != 1 || network.Networks[0].Link != network.Links[0].ID {
		t.Errorf("network_data.json = %+v", network)
	}
}
