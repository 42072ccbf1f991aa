package ext4

import (
	"encoding/binary"
	"fmt"
	"math"
	"sort"
)

// The journal is written in big-endian order (section "Journal (jbd2)").
var be = binary.BigEndian

// journalMagic begins each block that belongs to the journal itself. A block
// of the file system that begins like that is escaped in the journal.
var journalMagic = [4]byte{0xc0, 0x3b, 0x39, 0x98}

// Types of blocks, features and flags of tags.
const (
	journalDescriptor = 1
	journalCommit     = 2
	journalSuperV1    = 3
	journalSuperV2    = 4
	journalRevoke     = 5

	journalSumV1      = 0x1 // compatible
	journal64Bit      = 0x2 // incompatible
	journalAsync      = 0x4
	journalSumV2      = 0x8
	journalSumV3      = 0x10
	journalFastCommit = 0x20
	journalReadable   = 0x1 | journal64Bit | journalAsync | journalSumV2 | journalSumV3 | journalFastCommit

	tagEscaped  = 1
	tagSameUUID = 2
	tagLast     = 8

	journalHead        = 12
	revokeHead         = 16
	journalTail        = 4
	commitSumAt        = 0x10
	commitTimeAt       = 0x30
	defaultFastBlocks  = 256
	fastHeadTag        = 9
	sumTypeCRC32       = 1
	journalMaxReadable = maxJournalBlocks
)

// journalLog is the journal of a file system.
type journalLog struct {
	r           *Reader
	runs        []mapped
	start       uint32 // block of the log where it begins, 0 when empty
	sequence    uint32 // of its first transaction
	first, last uint32 // the blocks that are used in a circle; last is not
	fast        uint32 // where fast commits begin, or 0
	compat      uint32
	incompat    uint32
	seed        uint32
	steps       uint32 // blocks passed, to notice a circle
	lastTime    uint64 // of the last commit
}

// logEntry is a block that a transaction has logged.
type logEntry struct {
	block   uint64 // of the file system
	at      uint32 // in the journal
	sum     uint32
	escaped bool
}

// transaction is a complete transaction.
type transaction struct {
	id      uint32
	entries []logEntry
	revoked []uint64
}

// replay finds the committed transactions and lets their blocks hide those of
// the file system. It returns the number of transactions.
func (r *Reader) replay() (int, error) {
	j, err := r.openJournal()
	if err != nil || j.start == 0 {
		return 0, err
	}
	list, err := j.transactions()
	if err != nil {
		return 0, err
	}
	if err := j.checkFastCommit(j.sequence + uint32(len(list))); err != nil {
		return 0, err
	}
	r.dev.replayed, err = j.overlay(list)
	return len(list), err
}

// openJournal reads the journal's inode and superblock.
func (r *Reader) openJournal() (*journalLog, error) {
	number := r.sb.u32(0xe0) // s_journal_inum
	if number == 0 {
		return nil, unsupported("it needs recovery and is on another device")
	}
	if err := r.checkNumber(number); err != nil {
		return nil, err
	}
	table, err := r.inodeTable(&r.dev, uint64(number-1)/uint64(r.sb.inodesPerGroup))
	if err != nil {
		return nil, err
	}
	n, err := r.inode(&r.dev, number, table)
	if err != nil {
		return nil, err
	}
	blocks := uint64(n.size / r.dev.blockSize)
	if blocks == 0 || blocks > min(journalMaxReadable, r.sb.blocks) {
		return nil, unsupported("it has %d blocks, the limit is %d", blocks, min(journalMaxReadable, r.sb.blocks))
	}
	j := &journalLog{r: r}
	if j.runs, err = r.blockMap(&n.mapping, blocks, map[uint64]struct{}{}); err != nil {
		return nil, err
	}
	b, err := j.block(0)
	if err != nil {
		return nil, err
	}
	if err := j.parse(b, uint32(blocks)); err != nil {
		return nil, fmt.Errorf("superblock: %w", err)
	}
	return j, nil
}

// parse reads the journal's superblock.
func (j *journalLog) parse(b []byte, blocks uint32) error {
	kind := be.Uint32(b[4:])
	if [4]byte(b) != journalMagic || kind != journalSuperV1 && kind != journalSuperV2 {
		return corrupt("magic number %x, type %d", b[:4], kind)
	}
	j.last, j.first = be.Uint32(b[0x10:]), be.Uint32(b[0x14:])
	j.sequence, j.start = be.Uint32(b[0x18:]), be.Uint32(b[0x1c:])
	if kind == journalSuperV2 {
		j.compat, j.incompat = be.Uint32(b[0x24:]), be.Uint32(b[0x28:])
	}
	if unknown := j.incompat &^ journalReadable; unknown != 0 {
		return unsupported("features %#x", unknown)
	}
	if be.Uint32(b[0x0c:]) != uint32(len(b)) || j.last > blocks {
		return corrupt("%d blocks of %d bytes in a file of %d blocks of %d", j.last, be.Uint32(b[0x0c:]), blocks, len(b))
	}
	if j.sums() {
		j.seed = crc32c(math.MaxUint32, b[0x30:0x40])
		want := be.Uint32(b[0xfc:])
		be.PutUint32(b[0xfc:], 0)
		if crc32c(math.MaxUint32, b[:superSize]) != want {
			return corrupt("checksum is wrong")
		}
	}
	if j.incompat&journalFastCommit != 0 {
		n := be.Uint32(b[0x54:])
		if n == 0 {
			n = defaultFastBlocks
		}
		if n > 1 && n < j.last && j.last-n >= minJournalBlocks {
			j.last -= n
			j.fast = j.last + 1
		}
	}
	if j.start != 0 && (j.first == 0 || j.start < j.first || j.start >= j.last) {
		return corrupt("log starts at block %d, not from %d to %d", j.start, j.first, j.last)
	}
	return nil
}

// sums tells whether blocks have checksums of version 2 or 3.
func (j *journalLog) sums() bool { return j.incompat&(journalSumV2|journalSumV3) != 0 }

// physical returns where a block of the journal is in the file system.
func (j *journalLog) physical(at uint32) (uint64, error) {
	i := sort.Search(len(j.runs), func(i int) bool { return j.runs[i].logical+j.runs[i].count > uint64(at) })
	if i == len(j.runs) || j.runs[i].logical > uint64(at) {
		return 0, corrupt("block %d is a hole", at)
	}
	return j.runs[i].block + uint64(at) - j.runs[i].logical, nil
}

func (j *journalLog) block(at uint32) ([]byte, error) {
	p, err := j.physical(at)
	if err != nil {
		return nil, err
	}
	b := make([]byte, j.r.dev.blockSize)
	return b, j.r.dev.raw(b, int64(p)*j.r.dev.blockSize)
}

// after returns the block of the log that follows, and counts it.
func (j *journalLog) after(at uint32) (uint32, error) {
	if j.steps++; j.steps > j.last-j.first {
		return 0, corrupt("log runs in a circle")
	}
	if at++; at == j.last {
		at = j.first
	}
	return at, nil
}

// transactions reads the log up to where it is not continued.
func (j *journalLog) transactions() (list []transaction, err error) {
	at, id := j.start, j.sequence
	for j.steps < j.last-j.first {
		s := scan{j: j, tx: transaction{id: id}, at: at, sum: math.MaxUint32}
		complete, err := s.run()
		if err != nil {
			return nil, fmt.Errorf("transaction %d: %w", id, err)
		}
		if !complete {
			return list, nil
		}
		list = append(list, s.tx)
		at, id = s.at, id+1
	}
	return list, nil
}

// overlay decides which logged block is the newest of each, and verifies it.
func (j *journalLog) overlay(list []transaction) (map[uint64]logged, error) {
	revoked := map[uint64]uint32{} // by block: the last transaction that revokes it
	for _, tx := range list {
		for _, b := range tx.revoked {
			revoked[b] = tx.id
		}
	}
	found := map[uint64]logged{}
	for _, tx := range list {
		for _, e := range tx.entries {
			if last, ok := revoked[e.block]; ok && int32(tx.id-last) <= 0 {
				continue
			}
			if err := j.verify(tx.id, e); err != nil {
				return nil, fmt.Errorf("transaction %d: block %d: %w", tx.id, e.block, err)
			}
			p, err := j.physical(e.at)
			if err != nil {
				return nil, err
			}
			found[e.block] = logged{p, e.escaped}
		}
	}
	return found, nil
}

// verify checks the place and the checksum of a logged block.
func (j *journalLog) verify(id uint32, e logEntry) error {
	if e.block >= uint64(j.r.dev.size/j.r.dev.blockSize) {
		return corrupt("it is beyond the end")
	}
	if !j.sums() {
		return nil
	}
	b, err := j.block(e.at)
	if err != nil {
		return err
	}
	var number [4]byte
	be.PutUint32(number[:], id)
	sum, mask := crc32c(crc32c(j.seed, number[:]), b), uint32(math.MaxUint32)
	if j.incompat&journalSumV3 == 0 {
		mask = math.MaxUint16
	}
	if sum&mask != e.sum {
		return corrupt("checksum is wrong")
	}
	return nil
}

// checkFastCommit refuses a journal with fast commits after its last
// transaction: they change files, not blocks.
func (j *journalLog) checkFastCommit(next uint32) error {
	if j.fast == 0 {
		return nil
	}
	b, err := j.block(j.fast)
	if err != nil {
		return err
	}
	if le.Uint16(b) == fastHeadTag && le.Uint32(b[8:]) == next {
		return unsupported("fast commits need recovery")
	}
	return nil
}
