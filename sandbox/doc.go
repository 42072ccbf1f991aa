// Package sandbox runs a build's hooks in user namespaces, without privilege on
// the host, as real root and as an ordinary user alike.
//
// # Processes
//
//	caller                      the host
//	 └ init, worker W           outer namespace: StartWorker
//	    └ init, agent H         session, inner namespace: StartSession
//	       ├ hook               on the session's root: Session.Run
//	       └ init, agent        container: Session.Container
//	          └ hook            in the image's tree: Container.Run
//
// Each level is a process id namespace whose first process only reaps; when it
// dies, the kernel kills everything below it, and it dies with its parent. So
// kill -9 of any of them leaves no process behind.
//
// The worker has the caller's id as 0 and the image's ids one higher than the
// image has them ([IDShift]). The session, and the containers with it, have
// the image's own ids, 0 being image root. Hooks of a session have every
// capability in that inner user namespace, so that mount and chroot are the
// real tools and their mounts last as long as the session. Hooks of a container
// (libcontainer) have Docker's capabilities without CAP_SYS_ADMIN, and a
// seccomp deny-list.
//
// All of them see the same world on every machine: a fixed host name, umask,
// resource limits, a small /dev, an empty network, a session keyring of their
// own, no inherited descriptors, and no environment but what the command gives.
// fsync(2) and its relatives succeed at once and do nothing.
//
// # What it does not do
//
// It does not hide the kernel's version, the number of processors or the
// time. It does not limit memory, processor time, disk space or processes. A
// session's hooks are kept from the host, not from their own session: they can
// kill its agent, which ends the build with an error. A hook with
// [NetworkHost] reaches what the caller reaches.
//
// Kernel 5.12 or newer is required (mount_setattr, overlay in user namespaces).
// References: user_namespaces(7), pid_namespaces(7), mount_namespaces(7),
// seccomp(2), capabilities(7) and the OCI runtime specification 1.3.
//
// The package's own processes are this program, re-executed: a program that
// uses it calls [Main] first.
package sandbox

// IDShift is what the worker adds to an image's id: image id i is id i+IDShift
// in the outer namespace. Id 0 there is the caller.
const IDShift = 1

// DefaultHostname is the host name that hooks see when none is given.
const DefaultHostname = "localhost"
