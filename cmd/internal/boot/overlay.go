package boot

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
)

// createOverlay makes a qcow2 file at path that shows the image and takes the
// guest's writes.
func createOverlay(ctx context.Context, image, path string, size int64) error {
	format, own, err := probeImage(image)
	if err != nil {
		return err
	}
	if size == 0 {
		size = own
	}
	if size < own {
		return fmt.Errorf("create overlay: disk of %d bytes is smaller than the image's %d", size, own)
	}
	abs, err := filepath.Abs(image)
	if err != nil {
		return fmt.Errorf("create overlay: %w", err)
	}
	cmd := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-F", format, "-b", abs,
		path, strconv.FormatInt(size, 10))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("create overlay: qemu-img (Debian package qemu-utils): %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// probeImage tells a qcow2 image from a raw one and reads the size in bytes of
// the disk in it. It is stricter than QEMU: a raw disk has a boot signature,
// so that a truncated download or a text file is not taken for a disk.
func probeImage(path string) (format string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	var head [512]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		return "", 0, fmt.Errorf("read disk image: %s: %w", path, err)
	}
	// QEMU docs/interop/qcow2.txt: magic at 0, virtual size at 24, big endian.
	if string(head[:4]) == "QFI\xfb" {
		n := binary.BigEndian.Uint64(head[24:32])
		if n == 0 || n > 1<<62 {
			return "", 0, fmt.Errorf("read disk image: %s: impossible virtual size %d", path, n)
		}
		return "qcow2", int64(n), nil
	}
	if head[510] != 0x55 || head[511] != 0xaa {
		return "", 0, fmt.Errorf("read disk image: %s: neither qcow2 nor a disk with a boot sector", path)
	}
	st, err := f.Stat()
	if err != nil {
		return "", 0, fmt.Errorf("read disk image: %w", err)
	}
	return "raw", st.Size(), nil
}
