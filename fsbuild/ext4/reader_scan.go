package ext4

// scan reads one transaction of the log.
type scan struct {
	j       *journalLog
	tx      transaction
	at      uint32 // the next block
	sum     uint32 // of descriptors and what they log, in version 1
	suspect bool   // a checksum was wrong: an old block, or damage
}

// run reads up to the commit. It reports false where the log ends: at what is
// no block of this transaction.
func (s *scan) run() (complete bool, err error) {
	for {
		b, err := s.next()
		if err != nil {
			return false, err
		}
		if [4]byte(b) != journalMagic || be.Uint32(b[8:]) != s.tx.id {
			return false, nil
		}
		switch be.Uint32(b[4:]) {
		case journalDescriptor:
			err = s.descriptor(b)
		case journalRevoke:
			err = s.revoke(b)
		case journalCommit:
			return s.commit(b)
		default:
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
}

func (s *scan) next() ([]byte, error) {
	b, err := s.j.block(s.at)
	if err == nil {
		s.at, err = s.j.after(s.at)
	}
	return b, err
}

// tail verifies a descriptor or revoke block and returns it without the
// checksum.
func (s *scan) tail(b []byte) (body []byte, ok bool) {
	if !s.j.sums() {
		return b, true
	}
	body = b[:len(b)-journalTail]
	want := be.Uint32(b[len(body):])
	return body, crc32c32(crc32c(s.j.seed, body), 0) == want
}

// tagSize is the size of a tag without the UUID.
func (j *journalLog) tagSize() int {
	size := 8
	switch {
	case j.incompat&journalSumV3 != 0:
		return 16
	case j.incompat&journalSumV2 != 0:
		size += 2
	}
	if j.incompat&journal64Bit != 0 {
		size += 4
	}
	return size
}

// descriptor reads the tags of a block, and passes over what they log.
func (s *scan) descriptor(b []byte) error {
	body, ok := s.tail(b)
	s.suspect = s.suspect || !ok
	if s.j.compat&journalSumV1 != 0 {
		s.sum = crc32BE(s.sum, b)
	}
	size := s.j.tagSize()
	for rest := body[journalHead:]; len(rest) >= size; {
		e, flags := s.tag(rest)
		e.at = s.at
		if s.j.compat&journalSumV1 != 0 {
			data, err := s.j.block(s.at)
			if err != nil {
				return err
			}
			s.sum = crc32BE(s.sum, data)
		}
		var err error
		if s.at, err = s.j.after(s.at); err != nil {
			return err
		}
		s.tx.entries = append(s.tx.entries, e)
		if rest = rest[size:]; flags&tagSameUUID == 0 {
			rest = rest[min(16, len(rest)):]
		}
		if flags&tagLast != 0 {
			break
		}
	}
	return nil
}

// tag reads struct journal_block_tag_s, or journal_block_tag3_s.
func (s *scan) tag(b []byte) (e logEntry, flags uint32) {
	e.block = uint64(be.Uint32(b))
	high := b[8:]
	if s.j.incompat&journalSumV3 != 0 {
		flags, e.sum = be.Uint32(b[4:]), be.Uint32(b[12:])
	} else {
		e.sum, flags = uint32(be.Uint16(b[4:])), uint32(be.Uint16(b[6:]))
	}
	if s.j.incompat&journal64Bit != 0 {
		e.block |= uint64(be.Uint32(high)) << 32
	}
	e.escaped = flags&tagEscaped != 0
	return e, flags
}

// revoke reads the numbers of blocks that no earlier transaction, nor this
// one, may bring back.
func (s *scan) revoke(b []byte) error {
	body, ok := s.tail(b)
	if !ok {
		s.suspect = true
		return nil
	}
	used := be.Uint32(b[journalHead:])
	if used < revokeHead || used > uint32(len(body)) {
		return corrupt("revoke block uses %d bytes", used)
	}
	size := 4
	if s.j.incompat&journal64Bit != 0 {
		size = 8
	}
	for rest := body[revokeHead:used]; len(rest) >= size; rest = rest[size:] {
		if size == 8 {
			s.tx.revoked = append(s.tx.revoked, be.Uint64(rest))
		} else {
			s.tx.revoked = append(s.tx.revoked, uint64(be.Uint32(rest)))
		}
	}
	return nil
}

// commit decides about a transaction that ends. A wrong checksum is damage if
// the commit is not older than the one before; else the block is left from an
// earlier round of the log.
func (s *scan) commit(b []byte) (bool, error) {
	j, time := s.j, be.Uint64(b[commitTimeAt:])
	ok := !s.suspect && s.commitOK(b)
	switch {
	case ok:
		j.lastTime = time
		return true, nil
	case time < j.lastTime || !s.suspect && j.incompat&journalAsync != 0:
		return false, nil
	}
	return false, corrupt("checksum is wrong")
}

func (s *scan) commitOK(b []byte) bool {
	want := be.Uint32(b[commitSumAt:])
	if s.j.compat&journalSumV1 != 0 {
		kind, size := b[journalHead], b[journalHead+1]
		return kind == sumTypeCRC32 && size == 4 && want == s.sum || kind == 0 && size == 0 && want == 0
	}
	if !s.j.sums() {
		return true
	}
	be.PutUint32(b[commitSumAt:], 0)
	return crc32c(s.j.seed, b) == want
}

// crc32BE continues a CRC-32 with the polynomial 0x04c11db7, bits not
// reflected and nothing inverted.
func crc32BE(c uint32, b []byte) uint32 {
	for _, v := range b {
		c = c<<8 ^ crc32Table[byte(c>>24)^v]
	}
	return c
}

var crc32Table = func() (t [256]uint32) {
	for i := range t {
		c := uint32(i) << 24
		for range 8 {
			c = c<<1 ^ 0x04c11db7*(c>>31)
		}
		t[i] = c
	}
	return t
}()
