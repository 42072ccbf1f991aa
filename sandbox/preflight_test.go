package sandbox_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"cairn/sandbox"
)

func init() {
	// preflight says what Preflight finds, with the host changed by the
	// test's JSON.
	callers["preflight"] = func(string) error {
		h := host()
		if err := json.Unmarshal([]byte(os.Getenv("SANDBOX_TEST_HOST")), &h); err != nil {
			return err
		}
		_, err := sandbox.Preflight(h)
		var p *sandbox.PreflightError
		switch {
		case err == nil:
			return say("ok")
		case errors.As(err, &p):
			fmt.Printf("problem %d\n%v\n%s\n", p.Problem, err, p.Hint)
			return nil
		}
		return fmt.Errorf("not a PreflightError: %w", err)
	}
}

// TestPreflight checks each problem in an environment that has it.
func TestPreflight(t *testing.T) {
	refuses := filepath.Join(scratch(t, "root"), "newuidmap")
	if err := os.WriteFile(refuses, []byte("#!/bin/sh\necho 'newuidmap: write to uid_map failed: Operation not permitted' >&2\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	builder, err := user.Lookup("builder")
	if err != nil {
		t.Fatal(err)
	}
	byUID := func(file string) []byte {
		ranges, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return bytes.ReplaceAll(ranges, []byte("builder:"), []byte(builder.Uid+":"))
	}
	// Inside a user namespace with many ids, where nothing is the host's.
	const inside = "unshare --user --map-auto --map-root-user --mount --pid --fork --mount-proc --kill-child sh -c '%s; exec \"$0\"' "
	tests := []struct {
		name, who string
		host      map[string]any
		wrap      string // a shell command that gets the binary as $0
		problem   sandbox.Problem
		want      []string
	}{
		{name: "root", who: "root", problem: -1},
		{name: "ordinary user", who: "builder", problem: -1},
		{name: "root in a user namespace", who: "builder", wrap: fmt.Sprintf(inside, "true"), problem: -1},
		{
			name: "no range", who: "builder", host: map[string]any{"SubUID": []byte("other:100000:65536\nbuilder:1:100\n")},
			problem: sandbox.ProblemNoRange, want: []string{"found 100", "builder:100000:65536", "usermod"},
		},
		{name: "range by uid", who: "builder", host: map[string]any{"User": "", "SubUID": byUID("/etc/subuid"), "SubGID": byUID("/etc/subgid")}, problem: -1},
		{name: "no newuidmap", who: "builder", host: map[string]any{"NewUIDMap": ""}, problem: sandbox.ProblemNoTool, want: []string{"package uidmap"}},
		{
			name: "newuidmap refuses", who: "builder", host: map[string]any{"NewUIDMap": refuses},
			problem: sandbox.ProblemTool, want: []string{"write uid_map", "Operation not permitted", "nosuid"},
		},
		{
			name: "limit", who: "builder", wrap: fmt.Sprintf(inside, "echo 0 > /proc/sys/user/max_user_namespaces"),
			problem: sandbox.ProblemLimit, want: []string{"no space left", "max_user_namespaces"},
		},
		{
			name: "chroot", who: "builder", wrap: fmt.Sprintf(inside, "mount --rbind / /mnt; exec chroot /mnt \"$0\""),
			problem: sandbox.ProblemForbidden, want: []string{"operation not permitted", "chroot", "seccomp=unconfined"},
		},
		{
			name: "masked proc", who: "builder", wrap: fmt.Sprintf(inside, "mount -t tmpfs none /proc/irq"),
			problem: sandbox.ProblemMasked, want: []string{"mount /proc", "systempaths=unconfined"},
		},
		{
			name: "few ids", who: "builder", wrap: "unshare --user --map-root-user sh -c 'exec \"$0\"' ",
			problem: sandbox.ProblemNoRange, want: []string{"fewer than 65536 ids"},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			changed, err := json.Marshal(tt.host)
			if err != nil {
				t.Fatal(err)
			}
			cmd := asUser(t, tt.who, self)
			if tt.wrap != "" {
				cmd = asUser(t, tt.who, "/bin/sh", "-c", "exec "+tt.wrap+self)
			}
			cmd.Env = append(os.Environ(), envCase+"=preflight", "SANDBOX_TEST_HOST="+string(changed))
			out, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			got := string(out)
			first := fmt.Sprintf("problem %d\n", tt.problem)
			if tt.problem == -1 {
				first = "ok\n"
			}
			if !strings.HasPrefix(got, first) {
				t.Fatalf("got %q, want %q first", got, first)
			}
			for _, w := range tt.want {
				if !strings.Contains(got, w) {
					t.Errorf("got %q, want %q in it", got, w)
				}
			}
		})
	}
	if _, err := exec.LookPath("unshare"); err != nil {
		t.Fatal("install the package util-linux")
	}
}
