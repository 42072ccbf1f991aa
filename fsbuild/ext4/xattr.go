package ext4

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cairn/fsbuild/tree"
)

// Sizes and constants of xattrs (section "Extended Attributes").
const (
	xattrMagic     = 0xea020000
	xattrEntrySize = 16 // of an entry without its name
	xattrBlockHead = 32
	xattrInodeHead = 4
	xattrEnd       = 4    // zero bytes that end the entries
	extraSize      = 32   // i_extra_isize
	xattrMaxRefs   = 1024 // sharers of a block
)

// xattrBlockRoom is what a block has for entries and values.
func (s *shape) xattrBlockRoom() int { return s.blockSize - xattrBlockHead - xattrEnd }

// xattrInodeRoom is what an inode has for them. That of ext2 has none: Linux's
// own ext2 driver does not look there.
func (s *shape) xattrInodeRoom() int {
	if s.kind == Ext2 || s.inodeSize == oldInodeSize {
		return 0
	}
	return s.inodeSize - oldInodeSize - extraSize - xattrInodeHead - xattrEnd
}

// xattrNamespaces are the prefixes that the format abbreviates. The ACLs are
// whole names.
var xattrNamespaces = []struct {
	prefix string
	index  byte
	whole  bool
}{
	{"system.posix_acl_access", 2, true},
	{"system.posix_acl_default", 3, true},
	{"user.", 1, false},
	{"trusted.", 4, false},
	{"security.", 6, false},
}

// xattr is an attribute in on-disk form.
type xattr struct {
	index byte
	name  string
	value []byte
}

func (x *xattr) size() int { return (xattrEntrySize+len(x.name)+3)&^3 + (len(x.value)+3)&^3 }

// xattrBlock is a block that files with equal attributes share.
type xattrBlock struct {
	inode uint32 // index of the first file
	refs  uint32
	block uint64
}

// diskXattr converts one attribute.
func diskXattr(n *tree.Node, x tree.Xattr) (xattr, error) {
	for _, ns := range xattrNamespaces {
		rest, ok := strings.CutPrefix(x.Name, ns.prefix)
		if !ok || ns.whole != (rest == "") {
			continue
		}
		d := xattr{ns.index, rest, x.Value}
		if len(rest) > maxName {
			return d, fmt.Errorf("xattr %q: name has %d bytes after its prefix, the limit is %d", x.Name, len(rest), maxName)
		}
		if !ns.whole {
			return d, nil
		}
		var err error
		if d.value, err = diskACL(x.Value); err == nil && n.Type == tree.Symlink {
			err = errors.New("a symlink has no ACL")
		}
		if err == nil && ns.index == 3 && n.Type != tree.Directory {
			err = errors.New("only a directory has a default ACL")
		}
		if err != nil {
			return d, fmt.Errorf("xattr %q: %w", x.Name, err)
		}
		return d, nil
	}
	return xattr{}, fmt.Errorf("xattr %q: the namespace is none of user, trusted, security and POSIX ACLs", x.Name)
}

// ACL tags (POSIX.1e draft 17; the kernel's posix_acl_xattr.h).
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20

	aclWireVersion = 2 // of the system call's form
	aclDiskVersion = 1 // of ext4's form
)

// diskACL converts a POSIX ACL from the form of the system call, version 2 and
// 8 bytes an entry, to ext4's: version 1 and an id only where it means
// something.
func diskACL(v []byte) ([]byte, error) {
	if len(v) < 4 || len(v)%8 != 4 || le.Uint32(v) != aclWireVersion {
		return nil, errors.New("malformed POSIX ACL")
	}
	out := le.AppendUint32(nil, aclDiskVersion)
	for e := v[4:]; len(e) > 0; e = e[8:] {
		out = append(out, e[:4]...) // e_tag, e_perm
		switch tag := le.Uint16(e); tag {
		case aclUser, aclGroup:
			out = append(out, e[4:8]...) // e_id
		case aclUserObj, aclGroupObj, aclMask, aclOther:
		default:
			return nil, fmt.Errorf("POSIX ACL has an entry with the unknown tag %#x", tag)
		}
	}
	return out, nil
}

// splitXattrs decides where the attributes of a node go: all in the inode if
// they fit; else all in a block; else as many as fit in the inode, the others
// in a block.
func (s *shape) splitXattrs(n *tree.Node) (inode, block []xattr, err error) {
	if len(n.Xattrs) == 0 {
		return nil, nil, nil
	}
	all := make([]xattr, len(n.Xattrs))
	size := 0
	for i, x := range n.Xattrs {
		if all[i], err = diskXattr(n, x); err != nil {
			return nil, nil, err
		}
		size += all[i].size()
	}
	slices.SortFunc(all, func(a, b xattr) int {
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(len(a.name), len(b.name)), strings.Compare(a.name, b.name))
	})
	switch {
	case size <= s.xattrInodeRoom():
		return all, nil, nil
	case size <= s.xattrBlockRoom():
		return nil, all, nil
	}
	return s.overflowXattrs(all, size)
}

func (s *shape) overflowXattrs(all []xattr, size int) (inode, block []xattr, err error) {
	room, most := s.xattrInodeRoom(), s.xattrBlockRoom()
	for _, x := range all {
		if n := x.size(); n <= room && size > most {
			inode = append(inode, x)
			room -= n
			size -= n
		} else {
			block = append(block, x)
		}
	}
	if size > most {
		return nil, nil, fmt.Errorf("xattrs are %d bytes too large, the limit is %d in the inode and %d in a block",
			size-most, s.xattrInodeRoom(), most)
	}
	return inode, block, nil
}

// planXattrs finds the files that need an xattr block, and those that can
// share one.
func (l *Layout) planXattrs() error {
	shared := map[[32]byte]uint32{}
	b := make([]byte, l.blockSize)
	for i := range l.inodes {
		ino := &l.inodes[i]
		_, block, err := l.splitXattrs(ino.node)
		if err != nil {
			return fmt.Errorf("%q: %w", ino.node.Path, err)
		}
		if block == nil {
			continue
		}
		clear(b)
		putXattrBlock(b, block)
		key := sha256.Sum256(b)
		k, ok := shared[key]
		if !ok || l.xattrs[k].refs == xattrMaxRefs {
			k = uint32(len(l.xattrs))
			shared[key] = k
			l.xattrs = append(l.xattrs, xattrBlock{inode: uint32(i)})
		}
		l.xattrs[k].refs++
		ino.xattr = k
	}
	return nil
}

// putXattrs writes entries from b[at:] on and values down from the end of b.
// Offsets of values count from base. Hashes belong to entries in blocks only.
func putXattrs(b []byte, at, base int, list []xattr, hashes bool) (hash uint32) {
	end := len(b)
	for _, x := range list {
		end -= (len(x.value) + 3) &^ 3
		b[at] = byte(len(x.name)) // e_name_len
		b[at+1] = x.index         // e_name_index
		if len(x.value) > 0 {
			le.PutUint16(b[at+2:], uint16(end-base)) // e_value_offs
		}
		le.PutUint32(b[at+8:], uint32(len(x.value))) // e_value_size
		copy(b[at+xattrEntrySize:], x.name)          // e_name
		copy(b[end:], x.value)
		if hashes {
			h := xattrHash(x.name, b[end:end+(len(x.value)+3)&^3])
			le.PutUint32(b[at+12:], h) // e_hash
			hash = hash<<16 ^ hash>>16 ^ h
		}
		at += (xattrEntrySize + len(x.name) + 3) &^ 3
	}
	return hash
}

// xattrHash hashes a name and a padded value, bytes unsigned as Linux does
// since 6.2; e2fsck accepts both.
func xattrHash(name string, value []byte) (h uint32) {
	for _, c := range []byte(name) {
		h = h<<5 ^ h>>27 ^ uint32(c)
	}
	for ; len(value) > 0; value = value[4:] {
		h = h<<16 ^ h>>16 ^ le.Uint32(value)
	}
	return h
}

// putXattrBlock writes a block but for what depends on its place and sharers.
func putXattrBlock(b []byte, list []xattr) {
	le.PutUint32(b[0:], xattrMagic) // h_magic
	le.PutUint32(b[8:], 1)          // h_blocks
	hash := putXattrs(b, xattrBlockHead, 0, list, true)
	le.PutUint32(b[12:], hash) // h_hash
}

// xattrBlockAt fills b, which is zero, with a shared block.
func (l *Layout) xattrBlockAt(b []byte, x *xattrBlock) error {
	_, list, err := l.splitXattrs(l.inodes[x.inode].node)
	if err != nil {
		return err
	}
	putXattrBlock(b, list)
	le.PutUint32(b[4:], x.refs) // h_refcount
	if !l.modern {
		return nil
	}
	var number [8]byte
	le.PutUint64(number[:], x.block)
	le.PutUint32(b[16:], crc32c(crc32c(l.seed, number[:]), b)) // h_checksum
	return nil
}

// putInodeXattrs writes the attributes that are kept in an inode.
func putInodeXattrs(b []byte, list []xattr) {
	if len(list) == 0 {
		return
	}
	le.PutUint32(b, xattrMagic) // h_magic
	putXattrs(b, xattrInodeHead, xattrInodeHead, list, false)
}
