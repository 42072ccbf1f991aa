package sandbox_test

import (
	"context"
	"fmt"
	"os"

	"cairn/sandbox"
)

// A program calls Main first, finds out whether it can have a sandbox, and
// starts a worker, which starts a session with a tree as its root.
func Example() {
	sandbox.Main(func(ctx context.Context, _ *sandbox.WorkerConn) error {
		session, err := sandbox.StartSession(ctx, sandbox.SessionSpec{Root: "/srv/tools", Binary: "/.cairn/bin/cairn"})
		if err != nil {
			return err
		}
		defer session.Close() //nolint:errcheck // it has no error to tell
		status, err := session.Run(ctx, sandbox.Command{Args: []string{"/bin/true"}, Stderr: os.Stderr})
		if err != nil {
			return err
		}
		if !status.OK() {
			return fmt.Errorf("true: %s", status)
		}
		return nil
	})

	host := sandbox.Host{UID: 0} // what the command line knows of the machine
	ids, err := sandbox.Preflight(host)
	if err != nil {
		fmt.Println(err)
		return
	}
	worker, err := sandbox.StartWorker(context.Background(), sandbox.WorkerSpec{Map: ids, Host: host, Stderr: os.Stderr})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(worker.Wait())
}
