package require

import (
	"fmt"
	"os"
	"os/user"
	"runtime"
	"strings"
	"testing"
)

// recorder is a test that only keeps what it fails with.
type recorder struct {
	testing.TB
	failure string
}

func (r *recorder) Helper() {}
func (r *recorder) Fatalf(format string, args ...any) {
	r.failure = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

// failureOf runs f with a test that may fail.
func failureOf(f func(t testing.TB)) string {
	r := &recorder{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(r)
	}()
	<-done
	return r.failure
}

func TestTool(t *testing.T) {
	if got := Tool(t, "sh", "dash"); !strings.HasSuffix(got, "/sh") {
		t.Errorf("Tool(sh) = %q", got)
	}
	if got := Tool(t, "useradd", "passwd"); !strings.HasSuffix(got, "/useradd") {
		t.Errorf("Tool(useradd) = %q", got)
	}
	got := failureOf(func(t testing.TB) { Tool(t, "no-such-tool", "some-package") })
	if got != "no-such-tool is missing: install the Debian package some-package" {
		t.Errorf("Tool(no-such-tool) failed with %q", got)
	}
}

func TestUserNS(t *testing.T) { UserNS(t) }

func TestOrdinaryUser(t *testing.T) {
	u := OrdinaryUser(t)
	if again := OrdinaryUser(t); again != u {
		t.Errorf("OrdinaryUser() = %v, then %v", u, again)
	}
	if u.UID == 0 || u.Home == "" {
		t.Errorf("OrdinaryUser() = %+v", u)
	}
	for _, file := range []string{"/etc/subuid", "/etc/subgid"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if longest, _ := ranges(string(b), &user.User{Username: u.Name, Uid: fmt.Sprint(u.UID)}); longest < Range {
			t.Errorf("%s gives %s %d ids", file, u.Name, longest)
		}
	}
	t.Setenv("CAIRN_SECRET", "x")
	out, err := u.Command("sh", "-c", "id -u; id -G; pwd; echo $HOME $CAIRN_SECRET").CombinedOutput()
	want := fmt.Sprintf("%d\n%d\n%s\n%s\n", u.UID, u.GID, u.Home, u.Home)
	if os.Geteuid() == 0 && string(out) != want || err != nil {
		t.Errorf("as the user: %q, %v, want %q", out, err, want)
	}
}

func TestRanges(t *testing.T) {
	u := &user.User{Username: "me", Uid: "1000"}
	tests := []struct {
		name, text    string
		longest, free uint64
	}{
		{"empty", "", 0, 100000},
		{"others", "you:100000:65536\n", 0, 165536},
		{"by name", "you:100000:65536\nme:165536:65536\n", 65536, 231072},
		{"by id", "1000:200000:70000", 70000, 270000},
		{"several", "me:100000:10\nme:200000:20\n", 20, 200020},
		{"low range", "me:10:5\n", 5, 100000},
		{"nonsense", "me\nme:x:y\n:::\n#\n", 0, 100000},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			longest, free := ranges(test.text, u)
			if longest != test.longest || free != test.free {
				t.Errorf("ranges() = %d, %d, want %d, %d", longest, free, test.longest, test.free)
			}
		})
	}
}
