package vfat

import (
	"encoding/binary"
	"time"

	"cairn/fsbuild/tree"
)

var le = binary.LittleEndian

// Attributes of a directory entry.
const (
	attrReadOnly  = 0x01
	attrVolumeID  = 0x08
	attrDirectory = 0x10
	attrArchive   = 0x20
	attrLongName  = 0x0f // of a slot of a long name
	attrMask      = 0x3f
)

// Sectors of FAT32's reserved area; the spare ones are where mkfs.fat and
// Windows put them.
const (
	infoSector   = 1
	backupSector = 6
)

// bootSize is how much of a sector boot sector and FSInfo fill, whatever the
// sector size.
const bootSize = 512

// putBoot fills the boot sector ("Boot Sector and BPB"). Offsets in bytes.
func (l *Layout) putBoot(b []byte) {
	g := &l.geo
	copy(b[3:11], "MSWIN4.1")                    // BS_OEMName: what the specification recommends
	le.PutUint16(b[11:], uint16(g.sector))       // BPB_BytsPerSec
	b[13] = byte(g.perCluster)                   // BPB_SecPerClus
	le.PutUint16(b[14:], uint16(g.reserved))     // BPB_RsvdSecCnt
	b[16] = fats                                 // BPB_NumFATs
	b[21] = g.media                              // BPB_Media
	le.PutUint16(b[24:], uint16(g.track))        // BPB_SecPerTrk
	le.PutUint16(b[26:], uint16(g.heads))        // BPB_NumHeads
	le.PutUint32(b[28:], l.params.HiddenSectors) // BPB_HiddSec
	if g.total < 1<<16 && g.typ != FAT32 {
		le.PutUint16(b[19:], uint16(g.total)) // BPB_TotSec16
	} else {
		le.PutUint32(b[32:], uint32(g.total)) // BPB_TotSec32
	}
	extended := 36 // where the fields are that follow a type's own
	if g.typ == FAT32 {
		le.PutUint32(b[36:], uint32(g.fat))   // BPB_FATSz32
		le.PutUint32(b[44:], l.dirs[0].start) // BPB_RootClus
		le.PutUint16(b[48:], infoSector)      // BPB_FSInfo
		le.PutUint16(b[50:], backupSector)    // BPB_BkBootSec
		extended = 64
	} else {
		le.PutUint16(b[17:], uint16(g.rootEntries)) // BPB_RootEntCnt
		le.PutUint16(b[22:], uint16(g.fat))         // BPB_FATSz16
	}
	l.putExtended(b[extended:])
	b[0], b[1], b[2] = 0xeb, byte(extended+26-2), 0x90 // BS_jmpBoot: jmp to the code, nop
	copy(b[extended+26:], bootCode)
	b[510], b[511] = 0x55, 0xaa // Signature_word
}

// bootCode hands over to the next boot device, since there is nothing to boot:
// int 0x18, then halt for good.
const bootCode = "\xcd\x18\xf4\xeb\xfd"

// putExtended fills the fields from BS_DrvNum to BS_FilSysType, 26 bytes.
func (l *Layout) putExtended(b []byte) {
	if l.geo.media == 0xf8 {
		b[0] = 0x80 // BS_DrvNum: a fixed disk
	}
	b[2] = 0x29                          // BS_BootSig: the next three fields are there
	le.PutUint32(b[3:], l.params.Serial) // BS_VolID
	label := l.params.Label
	if label == "" {
		label = noLabel
	}
	copy(b[7:18], label+"           ")       // BS_VolLab
	copy(b[18:26], l.geo.typ.String()+"   ") // BS_FilSysType
}

// putInfo fills the FSInfo sector ("FAT32 FSInfo Sector Structure").
func (l *Layout) putInfo(b []byte) {
	le.PutUint32(b, 0x41615252)                          // FSI_LeadSig
	le.PutUint32(b[484:], 0x61417272)                    // FSI_StrucSig
	le.PutUint32(b[488:], uint32(l.geo.clusters)-l.used) // FSI_Free_Count
	le.PutUint32(b[492:], firstCluster+l.used-1)         // FSI_Nxt_Free: the last that was taken, as mkfs.fat has it
	le.PutUint32(b[508:], 0xaa550000)                    // FSI_TrailSig
}

// fatCursor yields the entries of the FAT in order.
type fatCursor struct {
	l     *Layout
	index uint32 // of the next entry
	chain int    // that the next entry belongs to
}

// next returns the next entry: the number of the following cluster, or the mark
// for the last one. Entries 0 and 1 hold the media descriptor and the mark,
// which also says that the volume is clean ("FAT Data Structure").
func (c *fatCursor) next() uint32 {
	i := c.index
	c.index++
	end := uint32(1)<<c.l.geo.typ - 1
	if c.l.geo.typ == FAT32 {
		end = 1<<28 - 1
	}
	switch i {
	case 0:
		return end&^0xff | uint32(c.l.geo.media)
	case 1:
		return end
	}
	if run := c.l.chains[c.chain]; i == run.start+run.count-1 {
		c.chain++
		return end
	}
	return i + 1
}

// put fills b, whole entries or the whole FAT for FAT12, with as many entries
// as there are, and returns how much of b that is.
func (c *fatCursor) put(b []byte) int {
	last, n := firstCluster+c.l.used, 0
	switch c.l.geo.typ {
	case FAT12:
		for c.index < last {
			v := c.next()
			if c.index%2 == 1 { // an even entry: the low 12 bits of three bytes
				b[n], b[n+1] = byte(v), byte(v>>8)
				n += 2
				continue
			}
			b[n-1] |= byte(v << 4)
			b[n] = byte(v >> 4)
			n++
		}
	case FAT16:
		for ; c.index < last && n < len(b); n += 2 {
			le.PutUint16(b[n:], uint16(c.next()))
		}
	case FAT32:
		for ; c.index < last && n < len(b); n += 4 {
			le.PutUint32(b[n:], c.next())
		}
	}
	return n
}

// putDirectory fills the slots of a directory ("FAT Directory Structure").
func (l *Layout) putDirectory(b []byte, d *directory) {
	name := blankName()
	switch {
	case d.parent != nil:
		name[0] = '.'
		modified := l.clamp(d.node)
		l.putSlot(b, name, attrDirectory, modified, d.start, 0)
		name[1] = '.'
		up := d.parent.start
		if d.parent.parent == nil {
			up = 0 // the root, also FAT32's
		}
		l.putSlot(b[slotSize:], name, attrDirectory, modified, up, 0)
		b = b[2*slotSize:]
	case l.params.Label != "":
		copy(name[:], l.params.Label)
		l.putSlot(b, name, attrVolumeID, l.stamp, 0, 0)
		b = b[slotSize:]
	}
	for i := range d.entries {
		e := &d.entries[i]
		b = putLong(b, e)
		attr, start := byte(attrArchive), e.start
		if e.dir != nil {
			attr, start = attrDirectory, e.dir.start
		}
		l.putSlot(b, e.short, attr, l.clamp(e.node), start, uint32(e.node.Size))
		b[12] = e.caseBits // DIR_NTRes
		b = b[slotSize:]
	}
}

// putSlot fills the entry of a short name.
func (l *Layout) putSlot(b []byte, name shortName, attr byte, modified dosTime, start, size uint32) {
	copy(b, name[:])                        // DIR_Name
	b[11] = attr                            // DIR_Attr
	b[13] = l.stamp.centis                  // DIR_CrtTimeTenth
	le.PutUint16(b[14:], l.stamp.time)      // DIR_CrtTime
	le.PutUint16(b[16:], l.stamp.date)      // DIR_CrtDate
	le.PutUint16(b[18:], l.stamp.date)      // DIR_LstAccDate
	le.PutUint16(b[20:], uint16(start>>16)) // DIR_FstClusHI
	le.PutUint16(b[22:], modified.time)     // DIR_WrtTime
	le.PutUint16(b[24:], modified.date)     // DIR_WrtDate
	le.PutUint16(b[26:], uint16(start))     // DIR_FstClusLO
	le.PutUint32(b[28:], size)              // DIR_FileSize
}

// unitOffsets says where the units of a long name are in a slot: LDIR_Name1, 2
// and 3.
var unitOffsets = [unitsPerSlot]int{1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30}

// putLong fills the slots of a long name, the end of the name first, and
// returns what is behind them ("FAT Long Directory Entries").
func putLong(b []byte, e *entry) []byte {
	n, sum := e.slots()-1, e.short.checksum()
	for i := n; i > 0; i-- {
		b[0] = byte(i) // LDIR_Ord
		if i == n {
			b[0] |= 0x40 // LAST_LONG_ENTRY
		}
		b[11], b[13] = attrLongName, sum // LDIR_Attr, LDIR_Chksum
		for k, off := range unitOffsets {
			unit := uint16(0xffff) // behind the final NUL
			if at := (i-1)*unitsPerSlot + k; at < len(e.long) {
				unit = e.long[at]
			} else if at == len(e.long) {
				unit = 0
			}
			le.PutUint16(b[off:], unit)
		}
		b = b[slotSize:]
	}
	return b
}

// dosTime is a time as an entry holds it ("Date and Time Formats").
type dosTime struct {
	date, time uint16
	centis     byte // 0 to 199, of creation only
}

// clamp returns the modification time of a node.
func (l *Layout) clamp(n *tree.Node) dosTime {
	t := n.MTime
	if !l.params.Time.IsZero() && t.Compare(l.latest) > 0 {
		t = l.latest
	}
	return toDOS(t)
}

// toDOS converts a time to UTC of 1980 to 2107, the nearest for others.
func toDOS(t tree.Time) dosTime {
	u := time.Unix(t.Sec, int64(t.Nsec)).UTC()
	switch {
	case u.Year() < 1980:
		return dosTime{date: 1<<5 | 1}
	case u.Year() > 2107:
		return dosTime{date: 127<<9 | 12<<5 | 31, time: 23<<11 | 59<<5 | 29, centis: 199}
	}
	return dosTime{
		date:   uint16((u.Year()-1980)<<9 | int(u.Month())<<5 | u.Day()),
		time:   uint16(u.Hour()<<11 | u.Minute()<<5 | u.Second()/2),
		centis: byte(u.Second()%2*100 + u.Nanosecond()/10_000_000),
	}
}

// fromDOS converts back. A date that does not exist is 1980-01-01.
func fromDOS(date, clock uint16) tree.Time {
	year, month, day := 1980+int(date>>9), time.Month(date>>5&15), int(date&31)
	hour, minute, second := int(clock>>11), int(clock>>5&63), int(clock&31)*2
	t := time.Date(year, month, day, hour, minute, second, 0, time.UTC)
	if t.Month() != month || t.Day() != day || hour > 23 || minute > 59 || second > 59 {
		t = time.Date(1980, 1, 1, 0, 0, 0, 0, time.UTC)
	}
	return tree.Time{Sec: t.Unix()}
}
