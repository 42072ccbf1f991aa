package sandbox

import "golang.org/x/sys/unix"

// tables are the ABIs of x86_64 kernels: the native one and i386. The third,
// x32, shares the native AUDIT_ARCH and is told by bit 30 of the number; its
// calls do not exist (ENOSYS).
//
// i386 programs may reach AF_VSOCK through socketcall(2), whose arguments a
// filter cannot see.
var tables = []table{
	{
		arch: unix.AUDIT_ARCH_X86_64,
		sync: []uint32{
			unix.SYS_FSYNC, unix.SYS_FDATASYNC, unix.SYS_SYNC, unix.SYS_SYNCFS, unix.SYS_SYNC_FILE_RANGE, unix.SYS_MSYNC,
		},
		denied: []uint32{
			unix.SYS_ACCT,
			unix.SYS_ADD_KEY,
			unix.SYS_BPF,
			unix.SYS_CLOCK_SETTIME,
			unix.SYS_CREATE_MODULE,
			unix.SYS_DELETE_MODULE,
			unix.SYS_FINIT_MODULE,
			unix.SYS_FSCONFIG,
			unix.SYS_FSMOUNT,
			unix.SYS_FSOPEN,
			unix.SYS_FSPICK,
			unix.SYS_GET_KERNEL_SYMS,
			unix.SYS_INIT_MODULE,
			unix.SYS_IOPERM,
			unix.SYS_IOPL,
			unix.SYS_IO_URING_ENTER,
			unix.SYS_IO_URING_REGISTER,
			unix.SYS_IO_URING_SETUP,
			unix.SYS_KCMP,
			unix.SYS_KEXEC_FILE_LOAD,
			unix.SYS_KEXEC_LOAD,
			unix.SYS_KEYCTL,
			unix.SYS_LOOKUP_DCOOKIE,
			unix.SYS_MIGRATE_PAGES,
			unix.SYS_MOUNT,
			unix.SYS_MOUNT_SETATTR,
			unix.SYS_MOVE_MOUNT,
			unix.SYS_MOVE_PAGES,
			unix.SYS_NFSSERVCTL,
			unix.SYS_OPEN_BY_HANDLE_AT,
			unix.SYS_OPEN_TREE,
			unix.SYS_PERF_EVENT_OPEN,
			unix.SYS_PIDFD_GETFD,
			unix.SYS_PIVOT_ROOT,
			unix.SYS_PROCESS_MADVISE,
			unix.SYS_PROCESS_VM_READV,
			unix.SYS_PROCESS_VM_WRITEV,
			unix.SYS_PTRACE,
			unix.SYS_QUERY_MODULE,
			unix.SYS_QUOTACTL,
			unix.SYS_QUOTACTL_FD,
			unix.SYS_REBOOT,
			unix.SYS_REQUEST_KEY,
			unix.SYS_SETNS,
			unix.SYS_SETTIMEOFDAY,
			unix.SYS_SWAPOFF,
			unix.SYS_SWAPON,
			unix.SYS_SYSFS,
			unix.SYS_SYSLOG,
			unix.SYS_UMOUNT2,
			unix.SYS_USELIB,
			unix.SYS_USERFAULTFD,
			unix.SYS_USTAT,
			unix.SYS_VHANGUP,
			unix.SYS__SYSCTL,
			nrOpenTreeAttr,
		},
		unshare: unix.SYS_UNSHARE,
		socket:  unix.SYS_SOCKET,
		maxNR:   1<<30 - 1,
	},
	{ // arch/x86/entry/syscalls/syscall_32.tbl
		arch: unix.AUDIT_ARCH_I386,
		sync: []uint32{
			118, // fsync
			148, // fdatasync
			36,  // sync
			344, // syncfs
			314, // sync_file_range
			144, // msync
		},
		denied: []uint32{
			21,  // mount
			22,  // umount
			25,  // stime
			26,  // ptrace
			51,  // acct
			52,  // umount2
			62,  // ustat
			79,  // settimeofday
			86,  // uselib
			87,  // swapon
			88,  // reboot
			101, // ioperm
			103, // syslog
			110, // iopl
			111, // vhangup
			113, // vm86old
			115, // swapoff
			127, // create_module
			128, // init_module
			129, // delete_module
			130, // get_kernel_syms
			131, // quotactl
			135, // sysfs
			149, // _sysctl
			166, // vm86
			167, // query_module
			169, // nfsservctl
			217, // pivot_root
			253, // lookup_dcookie
			264, // clock_settime
			283, // kexec_load
			286, // add_key
			287, // request_key
			288, // keyctl
			294, // migrate_pages
			317, // move_pages
			336, // perf_event_open
			342, // open_by_handle_at
			346, // setns
			347, // process_vm_readv
			348, // process_vm_writev
			349, // kcmp
			350, // finit_module
			357, // bpf
			374, // userfaultfd
			404, // clock_settime64
			425, // io_uring_setup
			426, // io_uring_enter
			427, // io_uring_register
			428, // open_tree
			429, // move_mount
			430, // fsopen
			431, // fsconfig
			432, // fsmount
			433, // fspick
			438, // pidfd_getfd
			440, // process_madvise
			442, // mount_setattr
			443, // quotactl_fd
			nrOpenTreeAttr,
		},
		unshare: 310,
		socket:  359,
	},
}
