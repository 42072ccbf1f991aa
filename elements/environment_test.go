package elements

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func variables(t *testing.T, e Environment, phase string) map[string]string {
	t.Helper()
	i := slices.IndexFunc(Phases(), func(p Phase) bool { return p.Name == phase })
	list := e.Variables(Phases()[i])
	if !slices.IsSorted(list) {
		t.Errorf("%s: not sorted", phase)
	}
	out := map[string]string{}
	for _, kv := range list {
		name, value, _ := strings.Cut(kv, "=")
		out[name] = value
	}
	return out
}

func testEnvironment() Environment {
	return Environment{
		Caller: []string{"DIB_FOO=1", "http_proxy=http://p", "SECRET=x", "TMPDIR=/t", "HOME=/home/me", "EXTRA_ONE=1", "break=before-root", "DIB_IMAGE_SIZE=3", "TARGET_ROOT=/evil", "ROOT_LABEL=x"},
		Pass:   []string{"EXTRA_*"}, Set: map[string]string{"ARCH": "amd64"}, Epoch: 12, Trace: 1,
		Elements: &Selection{Elements: []*Element{{Name: "b", Dir: "/e/b"}, {Name: "a", Dir: "/e/it's a"}}}, ElementsPath: []string{"/e", "/builtin"},
		RootFSType: "ext4", RootLabel: "cloudimg-rootfs", MountPoints: []string{"/", "/boot"}, MountPath: "/build/mnt", Home: "/home/me", HostPath: "/shims:/bin",
		BlockDevice: "/dev/x", BlockDevices: "[root]=/dev/x1 ", SizeKiB: 4096, Args: "args", Env: "env", FullArgs: "full args", Socket: "/sock",
	}
}

func TestVariables(t *testing.T) {
	e := testEnvironment()
	root, target, size, cleanup, final := variables(t, e, "root"), variables(t, e, "install"), variables(t, e, "block-device"), variables(t, e, "cleanup"), variables(t, e, "finalise")
	for _, v := range []map[string]string{root, target} {
		for name, want := range map[string]string{
			"DIB_FOO": "1", "http_proxy": "http://p", "EXTRA_ONE": "1", "break": "before-root", "ARCH": "amd64", "LC_ALL": "C", "TZ": "UTC", "SOURCE_DATE_EPOCH": "12",
			"IMAGE_ELEMENT": "b a", "IMAGE_ELEMENT_YAML": "a: /e/it's a\nb: /e/b\n", "DIB_ROOT_LABEL": "cloudimg-rootfs", "DIB_ROOT_FSTYPE": "ext4", "DIB_MOUNTPOINTS": "/|/boot",
			"DIB_ARGS": "args", "DIB_ENV": "env", "DIB_DEBUG_TRACE": "1", "IMAGE_NAME": "image", "DIB_DEFAULT_INSTALLTYPE": "source", "ELEMENTS_PATH": "/e:/builtin", "DIB_IMAGE_SIZE": "3",
			"TMP_MOUNT_PATH": "/build/mnt",
		} {
			if v[name] != want {
				t.Errorf("%s=%q, want %q", name, v[name], want)
			}
		}
		for _, name := range []string{"SECRET", "TMPDIR", "IMAGE_BLOCK_DEVICE", "IMAGE_BLOCK_DEVICES"} {
			if value, ok := v[name]; ok {
				t.Errorf("%s=%q is set", name, value)
			}
		}
	}
	if v, ok := root["DIB_OFFLINE"]; !ok || v != "" {
		t.Errorf("DIB_OFFLINE %q %v", v, ok)
	}
	if root["TARGET_ROOT"] != "/build/mnt" || cleanup["TARGET_ROOT"] != "/build/mnt" || root["PATH"] != "/shims:/bin" || root["HOME"] != "/home/me" || root["CAIRN_DIB_ARGS"] != "full args" {
		t.Errorf("root.d: %v", root)
	}
	for _, v := range []map[string]string{target, size, final} {
		if _, ok := v["TARGET_ROOT"]; ok {
			t.Error("TARGET_ROOT is set")
		}
	}
	if target["PATH"] != TargetPath || target["HOME"] != "/root" || target["CAIRN_SOCKET"] != "" || target["BASH_FUNC_die%%"] != "" || target["CAIRN_DIB_ARGS"] != "" {
		t.Errorf("install.d: %v", target)
	}
	if size["DIB_IMAGE_SIZE"] != "4096" || size["IMAGE_BLOCK_DEVICE"] != "" || final["IMAGE_BLOCK_DEVICE"] != "/dev/x" || final["IMAGE_BLOCK_DEVICES"] != "[root]=/dev/x1 " {
		t.Errorf("block device: %v %v", size, final)
	}
}

func TestExportedFunctions(t *testing.T) {
	e := testEnvironment()
	for _, tt := range []struct{ name, script, want string }{
		{"array", `declare -A all="($(get_image_element_array | sed 's/it.s a/its-a/'))"; echo ${all[b]} ${all[a]}`, "/e/b /e/its-a\n"},
		{"die after success", `(true; die some words); echo $?`, "some words\n1\n"},
		{"die after failure", `( (exit 5); die some words); echo $?`, "some words\n5\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := exec.Command("bash", "-c", tt.script)
			c.Env = append(e.Variables(Phases()[0]), "PATH=/usr/bin:/bin")
			out, err := c.CombinedOutput()
			if string(out) != tt.want {
				t.Errorf("%q, %v", out, err)
			}
		})
	}
}

func TestCanonicalArgs(t *testing.T) {
	places := []Place{{"/home/me", "~"}, {"/home/me/work", "."}}
	tests := []struct{ name, args, want string }{
		{"outputs", "-a amd64 -o /x/y -t qcow2,raw debian-minimal vm", "-a amd64 debian-minimal vm"},
		{"attached", "-o/x/y --image-cache=/c -traw -x debian --logfile f", "debian"},
		{"cluster", "-xuno /x -p a,b vm", "-n -p a,b vm"},
		{"cluster with value", "-npa,b vm", "-n -p=a,b vm"},
		{"paths", "--config /home/me/work/x.yaml --other=/home/me:/home/meow", "--config ./x.yaml --other=~:/home/meow"},
		{"end of options", "-n -- -o x", "-n -- -o x"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := CanonicalArgs(strings.Fields(tt.args), places); got != tt.want {
				t.Errorf("%q, want %q", got, tt.want)
			}
		})
	}
}

func TestCanonicalEnv(t *testing.T) {
	env := []string{"DIB_B=a \"b\" $c `d` \\", "DIB_A=/home/me/x", "HOME=/home/me", "DIB_IMAGE_CACHE=/c", "DIB_DEV_USER_PASSWORD=p", "DIB_URL=https://u:p@h/x"}
	want := "declare -x DIB_A=\"~/x\"\ndeclare -x DIB_B=\"a \\\"b\\\" \\$c \\`d\\` \\\\\"\ndeclare -x DIB_DEV_USER_PASSWORD=\"***\"\ndeclare -x DIB_URL=\"https://***@h/x\""
	if diff := cmp.Diff(want, CanonicalEnv(env, []Place{{"/home/me", "~"}})); diff != "" {
		t.Error(diff)
	}
	out, err := exec.Command("env", append([]string{"-i"}, append(env, "bash", "-c", "declare -p ${!DIB_*}")...)...).Output()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(out), FullEnv(env)+"\n"); diff != "" {
		t.Errorf("differs from bash: %s", diff)
	}
}
