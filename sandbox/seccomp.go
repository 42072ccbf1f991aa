package sandbox

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Offsets in struct seccomp_data (seccomp(2)).
const (
	dataNR   = 0 // int: system call number
	dataArch = 4 // u32: AUDIT_ARCH_*
	dataArg0 = 16
)

const (
	actKill  = 0x80000000 // SECCOMP_RET_KILL_PROCESS
	actErrno = 0x00050000 // SECCOMP_RET_ERRNO, errno in the low half; 0 makes the call succeed
	actAllow = 0x7fff0000 // SECCOMP_RET_ALLOW
)

const afVSOCK = 40

// newNamespaces are the flags of unshare(2) that make a namespace.
const newNamespaces = unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER |
	unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWCGROUP | unix.CLONE_NEWTIME

// A table names the system calls of one ABI that filters treat specially, by
// their numbers there.
type table struct {
	arch    uint32 // AUDIT_ARCH_*
	sync    []uint32
	denied  []uint32
	unshare uint32
	socket  uint32
	maxNR   uint32 // larger numbers belong to another ABI (x32); 0 = none do
}

// A filter is a classic BPF program (seccomp(2)).
type filter []unix.SockFilter

func (f *filter) stmt(code uint16, k uint32) {
	*f = append(*f, unix.SockFilter{Code: code, K: k})
}

func (f *filter) jump(op uint16, k uint32, yes, no uint8) {
	*f = append(*f, unix.SockFilter{Code: unix.BPF_JMP | op | unix.BPF_K, Jt: yes, Jf: no, K: k})
}

func (f *filter) load(offset uint32) { f.stmt(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS, offset) }
func (f *filter) ret(action uint32)  { f.stmt(unix.BPF_RET|unix.BPF_K, action) }

// ifEqual returns action when the accumulator is k, and goes on otherwise.
func (f *filter) ifEqual(k, action uint32) {
	f.jump(unix.BPF_JEQ, k, 0, 1)
	f.ret(action)
}

// hookFilter is the filter of host hooks: fsync and its relatives succeed, the
// hypervisor's sockets do not exist, everything else is as it was.
func hookFilter() filter { return assemble(false) }

// containerFilter is that of containers: besides, the calls of the deny-list
// fail with EPERM, and clone3 with ENOSYS.
func containerFilter() filter { return assemble(true) }

// assemble emits, for each ABI, a block that ends every path; a call of an ABI
// that has no block kills the process.
func assemble(deny bool) filter {
	var f filter
	f.load(dataArch)
	for _, t := range tables {
		block := t.block(deny)
		// A block is longer than a conditional jump reaches.
		f.jump(unix.BPF_JEQ, t.arch, 1, 0)
		f.stmt(unix.BPF_JMP|unix.BPF_JA, uint32(len(block)))
		f = append(f, block...)
	}
	f.ret(actKill)
	return f
}

func (t table) block(deny bool) filter {
	var f filter
	f.load(dataNR)
	if t.maxNR != 0 {
		f.jump(unix.BPF_JGT, t.maxNR, 0, 1)
		f.ret(actErrno | uint32(unix.ENOSYS))
	}
	for _, nr := range t.sync {
		f.ifEqual(nr, actErrno)
	}
	if deny {
		f.ifEqual(nrClone3, actErrno|uint32(unix.ENOSYS))
		for _, nr := range t.denied {
			f.ifEqual(nr, actErrno|uint32(unix.EPERM))
		}
		f.jump(unix.BPF_JEQ, t.unshare, 0, 4)
		f.load(dataArg0)
		f.jump(unix.BPF_JSET, newNamespaces, 0, 1)
		f.ret(actErrno | uint32(unix.EPERM))
		f.ret(actAllow)
	}
	f.jump(unix.BPF_JEQ, t.socket, 0, 3)
	f.load(dataArg0)
	f.jump(unix.BPF_JEQ, afVSOCK, 0, 1)
	f.ret(actErrno | uint32(unix.EAFNOSUPPORT))
	f.ret(actAllow)
	return f
}

// Calls that have the same number on every architecture.
const (
	nrClone3       = 435
	nrOpenTreeAttr = 467 // Linux 6.15
)

// install loads the filter for every thread of this process. It needs
// CAP_SYS_ADMIN in the user namespace, since no_new_privs must stay off for
// set-user-ID programs.
func (f filter) install() error {
	prog := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	const threadSync = 1 // SECCOMP_FILTER_FLAG_TSYNC
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, 1 /* SECCOMP_SET_MODE_FILTER */, threadSync, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return fmt.Errorf("load seccomp filter: %w", errno)
	}
	return nil
}

// run evaluates the filter as the kernel would. It is for tests, which must
// know what the filter says of ABIs that this machine cannot run.
func (f filter) run(data []byte) uint32 {
	var a uint32
	for pc := 0; pc < len(f); pc++ {
		in := f[pc]
		jump := func(cond bool) {
			if cond {
				pc += int(in.Jt)
			} else {
				pc += int(in.Jf)
			}
		}
		switch in.Code {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			a = binary.NativeEndian.Uint32(data[in.K:])
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(in.K)
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			jump(a == in.K)
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			jump(a > in.K)
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K:
			jump(a&in.K != 0)
		case unix.BPF_RET | unix.BPF_K:
			return in.K
		}
	}
	return actKill
}
