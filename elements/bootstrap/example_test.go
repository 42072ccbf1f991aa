package bootstrap_test

import (
	"fmt"

	"cairn/elements/bootstrap"
)

func ExampleCompareVersions() {
	fmt.Println(bootstrap.CompareVersions("1.0~rc1-1", "1.0-1") < 0)
	fmt.Println(bootstrap.CompareVersions("1:1.0", "2.0") > 0)
	fmt.Println(bootstrap.CompareVersions("0:1.0-0", "1.0"))
	// Output:
	// true
	// true
	// 0
}

func ExampleParseSources() {
	sources, err := bootstrap.ParseSources([]byte(`Types: deb
URIs: http://mirror.example.org/debian
Suites: trixie trixie-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
`))
	fmt.Println(err)
	for _, s := range sources {
		fmt.Println(s.URIs, s.Suites, s.Components, s.SignedBy)
	}
	// Output:
	// <nil>
	// [http://mirror.example.org/debian] [trixie trixie-updates] [main] [/usr/share/keyrings/debian-archive-keyring.gpg]
}

func ExampleAuth_Find() {
	auth, err := bootstrap.ParseAuth([]byte("machine mirror.example.org/debian login me password secret"))
	if err != nil {
		fmt.Println(err)
		return
	}
	login, _, ok := auth.Find("https://mirror.example.org/debian/dists/sid/InRelease")
	fmt.Println(login, ok)
	// Output: me true
}

func ExampleDefaultArchives() {
	for _, a := range bootstrap.DefaultArchives("trixie") {
		fmt.Println(a.Canonical, a.Suites)
	}
	// Output:
	// http://ftp.debian.org/debian [trixie trixie-updates]
	// http://security.debian.org/debian-security [trixie-security]
}
