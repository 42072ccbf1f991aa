package ext4

import (
	"cmp"
	"fmt"
	"math"
	"slices"

	"cairn/fsbuild/tree"
)

const (
	maxXattrValue   = 1 << 16 // the limit of the system call
	inlineDataIndex = 7       // namespace "system.", where inline data is
	inlineDataName  = "data"
)

// readNamespaces are the prefixes that Linux, Hurd and e2fsprogs know.
var readNamespaces = map[byte]string{
	1: "user.", 2: "system.posix_acl_access", 3: "system.posix_acl_default", 4: "trusted.",
	6: "security.", 7: "system.", 8: "system.richacl", 10: "gnu.",
}

// foundXattr is an attribute as it was found.
type foundXattr struct {
	index byte
	name  string
	value []byte // nil if it is in an inode
	inode uint32 // that holds the value, or 0
	size  int64  // of the value
}

// parseXattrs parses entries from b[at:] on; offsets of values count from
// base (section "Extended Attributes").
func parseXattrs(b []byte, at, base int) (list []foundXattr, err error) {
	for {
		if at+xattrEnd > len(b) {
			return nil, corrupt("attributes do not end")
		}
		if le.Uint32(b[at:]) == 0 {
			return list, nil
		}
		if at+xattrEntrySize > len(b) || at+xattrEntrySize+int(b[at]) > len(b) {
			return nil, corrupt("attribute at %d is cut off", at)
		}
		e := b[at:]
		x := foundXattr{index: e[1], name: string(e[xattrEntrySize:][:e[0]]), inode: le.Uint32(e[4:]), size: int64(le.Uint32(e[8:]))}
		if x.inode == 0 {
			from := int64(base) + int64(le.Uint16(e[2:]))
			if x.size > int64(len(b)) || x.size > 0 && from+x.size > int64(len(b)) {
				return nil, corrupt("value of attribute at %d is cut off", at)
			}
			if x.size > 0 {
				x.value = b[from : from+x.size]
			}
		}
		list = append(list, x)
		at += (xattrEntrySize + int(e[0]) + 3) &^ 3
	}
}

// bodyXattrs returns what an inode itself holds.
func bodyXattrs(n *foundInode) ([]foundXattr, error) {
	if len(n.body) < xattrInodeHead || le.Uint32(n.body) != xattrMagic {
		return nil, nil
	}
	return parseXattrs(n.body, xattrInodeHead, xattrInodeHead)
}

// inlineRest returns the inline data that i_block has no room for.
func (w *walker) inlineRest(n *foundInode) ([]byte, error) {
	list, err := bodyXattrs(n)
	if err != nil {
		return nil, err
	}
	for _, x := range list {
		if x.index == inlineDataIndex && x.name == inlineDataName && x.inode == 0 {
			return x.value, nil
		}
	}
	return nil, corrupt("inode %d: inline data is missing", n.number)
}

// inlineData returns what is inline of a file or symlink. There may be less
// than its size: mke2fs leaves a file that is all holes like that.
func (w *walker) inlineData(n *foundInode) ([]byte, error) {
	more, err := w.inlineRest(n)
	if err != nil {
		return nil, err
	}
	b := append(slices.Clone(n.root[:inlineInRoot]), more...)
	b = b[:min(n.size, int64(len(b)))]
	w.budget.earn(len(more))
	return b, w.budget.spend(len(b))
}

// xattrs returns all attributes of an inode, by name.
func (w *walker) xattrs(n *foundInode) ([]tree.Xattr, error) {
	found, err := bodyXattrs(n)
	if err != nil {
		return nil, err
	}
	list, err := w.convertXattrs(found)
	if err != nil {
		return nil, err
	}
	if n.xattr != 0 {
		shared, err := w.xattrBlock(n.xattr)
		if err != nil {
			return nil, fmt.Errorf("attribute block %d: %w", n.xattr, err)
		}
		if err := w.budget.spend(len(shared) * xattrCost); err != nil {
			return nil, err
		}
		list = append(list, shared...)
	}
	slices.SortFunc(list, func(a, b tree.Xattr) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// xattrBlock reads a block of attributes once. Values are shared by all files
// that have it.
func (w *walker) xattrBlock(block uint64) ([]tree.Xattr, error) {
	if list, ok := w.xattrBlocks[block]; ok {
		return list, nil
	}
	b, err := w.r.metaBlock(block)
	if err != nil {
		return nil, err
	}
	w.budget.earn(len(b))
	if le.Uint32(b) != xattrMagic || le.Uint32(b[8:]) != 1 {
		return nil, corrupt("magic number %#x, %d blocks", le.Uint32(b), le.Uint32(b[8:]))
	}
	if w.r.sb.ro&featMetadataCsum != 0 {
		var number [8]byte
		le.PutUint64(number[:], block)
		want := le.Uint32(b[16:])
		le.PutUint32(b[16:], 0)
		if crc32c(crc32c(w.r.sb.seed, number[:]), b) != want {
			return nil, corrupt("checksum is wrong")
		}
	}
	found, err := parseXattrs(b, xattrBlockHead, 0)
	if err != nil {
		return nil, err
	}
	list, err := w.convertXattrs(found)
	if err == nil {
		w.xattrBlocks[block] = list
	}
	return list, err
}

// convertXattrs gives attributes the form of the system call and leaves out
// inline data.
func (w *walker) convertXattrs(found []foundXattr) ([]tree.Xattr, error) {
	var list []tree.Xattr
	for _, x := range found {
		if x.index == inlineDataIndex && x.name == inlineDataName {
			continue
		}
		prefix, ok := readNamespaces[x.index]
		if !ok {
			return nil, unsupported("attribute %q of namespace %d", x.name, x.index)
		}
		converted, err := w.convertXattr(tree.Xattr{Name: prefix + x.name}, x)
		if err != nil {
			return nil, fmt.Errorf("xattr %q: %w", prefix+x.name, err)
		}
		list = append(list, converted)
	}
	return list, nil
}

func (w *walker) convertXattr(to tree.Xattr, x foundXattr) (tree.Xattr, error) {
	value := x.value
	if err := w.budget.spend(xattrCost + len(to.Name) + len(value)); err != nil {
		return to, err
	}
	var err error
	if x.inode != 0 {
		if value, err = w.xattrInode(x); err != nil {
			return to, err
		}
	}
	if x.index == 2 || x.index == 3 {
		to.Value, err = wireACL(value)
		return to, err
	}
	to.Value = value
	if x.inode == 0 {
		to.Value = append([]byte{}, value...) // not the whole inode or block
	}
	return to, nil
}

// xattrInode reads a value that has an inode of its own, once.
func (w *walker) xattrInode(x foundXattr) ([]byte, error) {
	if b, ok := w.xattrInodes[x.inode]; ok && int64(len(b)) == x.size {
		return b, nil
	}
	n, err := w.inode(x.inode)
	if err != nil {
		return nil, err
	}
	if n.flags&inodeEA == 0 || n.nodeType() != tree.Regular || n.size != x.size {
		return nil, corrupt("inode %d, which has %d bytes, holds no value of %d", n.number, n.size, x.size)
	}
	if n.size > maxXattrValue {
		return nil, unsupported("value of %d bytes, the limit is %d", n.size, maxXattrValue)
	}
	if err := w.budget.spend(int(n.size)); err != nil {
		return nil, err
	}
	var b []byte
	if n.flags&inodeInline != 0 {
		b, err = w.inlineData(n)
	} else {
		b, err = w.r.whole(&n.mapping, maxXattrValue, w.blocks)
	}
	if err == nil && int64(len(b)) != x.size {
		err = corrupt("inode %d: %d bytes of inline data, not %d", n.number, len(b), x.size)
	}
	if err == nil {
		w.xattrInodes[x.inode] = b
	}
	return b, err
}

// wireACL converts a POSIX ACL from ext4's form to that of the system call:
// the reverse of diskACL.
func wireACL(v []byte) ([]byte, error) {
	if len(v) < 4 || le.Uint32(v) != aclDiskVersion {
		return nil, corrupt("POSIX ACL has not version %d", aclDiskVersion)
	}
	out := le.AppendUint32(nil, aclWireVersion)
	for e := v[4:]; len(e) > 0; {
		if len(e) < 4 {
			return nil, corrupt("POSIX ACL is cut off")
		}
		out = append(out, e[:4]...) // e_tag, e_perm
		switch tag := le.Uint16(e); {
		case tag != aclUser && tag != aclGroup:
			out = le.AppendUint32(out, math.MaxUint32)
			e = e[4:]
		case len(e) < 8:
			return nil, corrupt("POSIX ACL is cut off")
		default:
			out = append(out, e[4:8]...) // e_id
			e = e[8:]
		}
	}
	return out, nil
}
