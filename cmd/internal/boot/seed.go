package boot

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
)

// Labels by which guests know a seed disk.
const (
	ConfigDriveLabel = "config-2"
	NoCloudLabel     = "cidata"
)

// WriteSeed writes a seed disk with the files to path, which must not exist:
// an ISO 9660 volume with Rock Ridge names and no partition table. It is for a
// handful of files: a folder takes about twenty.
func WriteSeed(path, label string, files []File) error {
	b, err := SeedVolume(label, files)
	if err != nil {
		return fmt.Errorf("write seed disk: %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write seed disk: %w", err)
	}
	if _, err := f.Write(b); err != nil {
		return fmt.Errorf("write seed disk: %w", errors.Join(err, f.Close(), os.Remove(path)))
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("write seed disk: %w", err)
	}
	return nil
}

// Sizes and places of ECMA-119 (ISO 9660) and IEEE P1282 (Rock Ridge).
const (
	sector        = 2048
	systemSectors = 16                // unused at the beginning of the volume
	pathTableL    = systemSectors + 2 // after primary and terminating descriptor
	pathTableM    = pathTableL + 1
	firstExtent   = pathTableM + 1
	maxSeedName   = 120 // bytes, so that a directory record stays below 256
)

// seedNode is a file or folder of the volume.
type seedNode struct {
	name     string
	folder   bool
	data     []byte // of a file
	parent   *seedNode
	children []*seedNode
	number   int    // of a folder in the path table, from 1; of a file from 0
	extent   uint32 // first sector
}

// SeedVolume returns the bytes of a seed disk. They depend on nothing but the
// label and the files.
func SeedVolume(label string, files []File) ([]byte, error) {
	if len(label) > 32 {
		return nil, fmt.Errorf("label %q is longer than 32 bytes", label)
	}
	root, err := seedTree(files)
	if err != nil {
		return nil, err
	}
	folders, regular := root.enumerate()
	next := uint32(firstExtent)
	for _, n := range slices.Concat(folders, regular) {
		n.extent = next
		next += sectors(n.size())
	}
	volume := make([]byte, int(next)*sector)
	at := func(extent uint32) []byte { return volume[int(extent)*sector:] }
	copy(at(systemSectors), primaryDescriptor(label, next, root, pathTableSize(folders)))
	copy(at(systemSectors+1), "\xffCD001\x01")
	if pathTableSize(folders) > sector {
		return nil, errors.New("too many folders")
	}
	copy(at(pathTableL), pathTable(folders, binary.LittleEndian))
	copy(at(pathTableM), pathTable(folders, binary.BigEndian))
	for _, n := range folders {
		records := n.records()
		if len(records) > sector {
			return nil, fmt.Errorf("too many files in folder %q", n.name)
		}
		copy(at(n.extent), records)
	}
	for _, n := range regular {
		copy(at(n.extent), n.data)
	}
	return volume, nil
}

// seedTree makes the tree of folders that the files' names describe.
func seedTree(files []File) (*seedNode, error) {
	root := &seedNode{folder: true}
	root.parent = root
	for _, f := range files {
		if f.Name == "" || path.Clean("/"+f.Name) != "/"+f.Name {
			return nil, fmt.Errorf("name %q is not a clean relative path", f.Name)
		}
		at := root
		parts := strings.Split(f.Name, "/")
		for i, part := range parts {
			var err error
			if at, err = at.child(part, i < len(parts)-1); err != nil {
				return nil, fmt.Errorf("name %q: %w", f.Name, err)
			}
		}
		at.data = f.Data
	}
	return root, nil
}

// child finds a folder or makes a file or folder.
func (n *seedNode) child(name string, folder bool) (*seedNode, error) {
	if len(name) > maxSeedName {
		return nil, fmt.Errorf("part longer than %d bytes", maxSeedName)
	}
	i, found := slices.BinarySearchFunc(n.children, name, func(c *seedNode, name string) int {
		return strings.Compare(c.name, name)
	})
	if found {
		if !folder || !n.children[i].folder {
			return nil, errors.New("stands twice")
		}
		return n.children[i], nil
	}
	c := &seedNode{name: name, folder: folder, parent: n}
	n.children = slices.Insert(n.children, i, c)
	return c, nil
}

// enumerate numbers folders from 1, level by level as the path table wants
// them, and files from 0, and returns both in that order.
func (n *seedNode) enumerate() (folders, files []*seedNode) {
	folders = []*seedNode{n}
	for i := 0; i < len(folders); i++ {
		folders[i].number = i + 1
		for _, c := range folders[i].children {
			if c.folder {
				folders = append(folders, c)
				continue
			}
			c.number = len(files)
			files = append(files, c)
		}
	}
	return folders, files
}

// size in bytes of what stands in the node's extent.
func (n *seedNode) size() int {
	if n.folder {
		return sector
	}
	return len(n.data)
}

// sectors is how many a number of bytes takes; an empty file has one too, so
// that no two nodes share an extent.
func sectors(size int) uint32 { return uint32(max(1, (size+sector-1)/sector)) }

// identifier is the node's ISO 9660 name. It only has to be valid, unique and
// in order: the name that people see is the Rock Ridge one.
func (n *seedNode) identifier() string {
	if n.folder {
		return fmt.Sprintf("D%07d", n.number)
	}
	return fmt.Sprintf("F%07d.;1", n.number)
}

// both is a number in both byte orders, ECMA-119 7.3.3.
func both(b []byte, v uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.LittleEndian.AppendUint32(b, v), v)
}

// both16 is a 16-bit number in both byte orders, ECMA-119 7.2.3.
func both16(b []byte, v uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.LittleEndian.AppendUint16(b, v), v)
}

// records are the directory records of a folder, in order of identifiers:
// folders have smaller ones than files.
func (n *seedNode) records() []byte {
	shared := []byte(nil)
	if n.parent == n {
		shared = append(shared, "SP\x07\x01\xbe\xef\x00"...) // SUSP 5.3: Rock Ridge begins here
	}
	shared = append(shared, n.attributes()...)
	if n.parent == n {
		shared = append(shared, "ER\x12\x01\x0a\x00\x00\x01RRIP_1991A"...) // SUSP 5.5
	}
	b := n.record("\x00", shared)
	b = append(b, n.parent.record("\x01", n.parent.attributes())...)
	for _, folders := range []bool{true, false} {
		for _, c := range n.children {
			if c.folder == folders {
				name := append([]byte{'N', 'M', byte(5 + len(c.name)), 1, 0}, c.name...) // RRIP 4.1.4
				b = append(b, c.record(c.identifier(), append(c.attributes(), name...))...)
			}
		}
	}
	return b
}

// attributes is the Rock Ridge PX entry, RRIP 4.1.1: mode, links, owner, group.
func (n *seedNode) attributes() []byte {
	mode, links := uint32(0o100444), uint32(1)
	if n.folder {
		mode, links = 0o40555, 2
	}
	return both(both(both(both([]byte("PX\x24\x01"), mode), links), 0), 0)
}

// record is one directory record, ECMA-119 9.1.
func (n *seedNode) record(identifier string, systemUse []byte) []byte {
	flags := byte(0)
	if n.folder {
		flags = 2
	}
	b := both([]byte{0, 0}, n.extent)                // length (set below), no extended attributes, extent
	b = both(b, uint32(n.size()))                    // data length
	b = append(b, 70, 1, 1, 0, 0, 0, 0, flags, 0, 0) // 1970-01-01, flags, not interleaved
	b = both16(b, 1)                                 // volume 1
	b = append(append(b, byte(len(identifier))), identifier...)
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	b = append(b, systemUse...)
	if len(b)%2 == 1 {
		b = append(b, 0)
	}
	b[0] = byte(len(b))
	return b
}

// pathTable lists the folders, ECMA-119 9.4.
func pathTable(folders []*seedNode, order binary.AppendByteOrder) []byte {
	var b []byte
	for _, n := range folders {
		identifier := n.identifier()
		if n.parent == n {
			identifier = "\x00"
		}
		b = order.AppendUint32(append(b, byte(len(identifier)), 0), n.extent)
		b = append(order.AppendUint16(b, uint16(n.parent.number)), identifier...)
		if len(identifier)%2 == 1 {
			b = append(b, 0)
		}
	}
	return b
}

func pathTableSize(folders []*seedNode) int { return len(pathTable(folders, binary.LittleEndian)) }

// primaryDescriptor is the primary volume descriptor, ECMA-119 8.4.
func primaryDescriptor(label string, sectors uint32, root *seedNode, tableBytes int) []byte {
	text := func(s string, width int) string { return s + strings.Repeat(" ", width-len(s)) }
	b := []byte("\x01CD001\x01\x00" + text("LINUX", 32) + text(label, 32))
	b = both(append(b, make([]byte, 8)...), sectors)
	b = both16(both16(both16(append(b, make([]byte, 32)...), 1), 1), sector) // volumes, this one, block size
	b = both(b, uint32(tableBytes))
	b = binary.LittleEndian.AppendUint32(b, pathTableL)
	b = binary.BigEndian.AppendUint64(b, pathTableM) // no optional L table, then the M table
	b = append(b, 0, 0, 0, 0)                        // no optional M table
	b = append(b, root.record("\x00", nil)...)
	b = append(b, text("", 4*128+3*37)...) // volume set, publisher, preparer, application; three files
	for range 4 {                          // creation, modification, expiration, effective: not given
		b = append(b, bytes.Repeat([]byte{'0'}, 16)...)
		b = append(b, 0)
	}
	return append(b, 1) // file structure version
}
