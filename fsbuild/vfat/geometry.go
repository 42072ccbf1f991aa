package vfat

// geometry is where the parts of a file system are. Units are sectors unless
// the name says otherwise.
type geometry struct {
	typ         Type
	sector      uint64 // in bytes
	perCluster  uint64
	total       uint64
	reserved    uint64
	copies      uint64 // of the FAT, a count
	fat         uint64 // of one FAT
	root        uint64 // of FAT12's and FAT16's root directory
	clusters    uint64 // a count
	track       uint64 // sectors of one
	heads       uint64 // a count
	rootEntries uint64 // a count
	media       byte
}

func (g *geometry) clusterSize() uint64 { return g.perCluster * g.sector }
func (g *geometry) rootStart() uint64   { return g.reserved + g.copies*g.fat }
func (g *geometry) dataStart() uint64   { return g.rootStart() + g.root }

// offset returns where a cluster starts, in bytes.
func (g *geometry) offset(cluster uint32) int64 {
	return int64((g.dataStart() + uint64(cluster-firstCluster)*g.perCluster) * g.sector)
}

// clusterRange returns how many clusters a type may have. The limits are
// mkfs.fat's, which keep clear of the borders at 4085 and 65525 ("FAT Type
// Determination") where readers are known to err.
func clusterRange(t Type) (least, most uint64) {
	switch t {
	case FAT12:
		return 1, 4084
	case FAT16:
		return 4087, 65524
	default:
		return 65525, 1<<28 - 10
	}
}

// medium is what a rule of old says about a volume of a size.
type medium struct {
	track, heads, perCluster, rootEntries uint64
	media                                 byte
}

// mediumOf returns the geometry of mkfs.fat 4.2, establish_params: floppies by
// size, then the recommendation of the SD card association, then the LBA
// translation of BIOSes.
func mediumOf(sectors, sector uint64) medium {
	switch sectors * sector / 1024 {
	case 360:
		return medium{9, 2, 2, 112, 0xfd}
	case 720:
		return medium{9, 2, 2, 112, 0xf9}
	case 1200:
		return medium{15, 2, 1, 224, 0xf9}
	case 1440:
		return medium{18, 2, 1, 224, 0xf0}
	case 2880:
		return medium{36, 2, 2, 224, 0xf0}
	}
	m := medium{track: 63, heads: 255, perCluster: 4, rootEntries: defaultRootEntries, media: 0xf8}
	for _, step := range []struct{ most, track, heads uint64 }{
		{4096, 16, 2},
		{32768, 32, 2},
		{65536, 32, 4},
		{262144, 32, 8},
		{524288, 32, 16},
		{16 * 63 * 1024, 63, 16},
		{32 * 63 * 1024, 63, 32},
		{64 * 63 * 1024, 63, 64},
		{128 * 63 * 1024, 63, 128},
	} {
		if sectors <= step.most {
			m.track, m.heads = step.track, step.heads
			break
		}
	}
	return m
}

// perCluster32 is the first guess of FAT32, in sectors for a cluster.
func perCluster32(sectors uint64) uint64 {
	switch {
	case sectors > 64<<20:
		return 64
	case sectors > 32<<20:
		return 32
	case sectors > 16<<20:
		return 16
	case sectors > 260<<11:
		return 8
	}
	return 1
}

// verdict is the result of a choice.
type verdict int

const (
	fits verdict = iota
	tooSmall
	tooLarge
)

// choose returns the geometry of a volume of so many sectors.
func (p *Params) choose(sectors uint64) (geometry, verdict) {
	types := []Type{FAT12, FAT32} // the first stands for FAT16 too
	switch {
	case p.Type != 0:
		types = []Type{p.Type}
	case sectors*p.sector() >= 512<<20:
		types = []Type{FAT32, FAT12}
	}
	result := tooLarge
	for _, typ := range types {
		for n := p.firstGuess(typ, sectors); n <= maxClusterSize; n *= 2 {
			g, v := p.arrange(typ, n, sectors)
			if p.Type == 0 && typ == FAT12 {
				if h, w := p.arrange(FAT16, n, sectors); v != fits && w != tooSmall {
					g, v = h, w
				}
			}
			if v == fits {
				return g, v
			}
			if v == tooSmall {
				result = v
				break // larger clusters are fewer
			}
			if p.ClusterSize != 0 {
				break
			}
		}
	}
	return geometry{}, result
}

// firstGuess returns the sectors of a cluster that choose starts with.
func (p *Params) firstGuess(typ Type, sectors uint64) uint64 {
	switch {
	case p.ClusterSize != 0:
		return uint64(p.ClusterSize) / p.sector()
	case typ == FAT32:
		return perCluster32(sectors)
	}
	return mediumOf(sectors, p.sector()).perCluster
}

// arrange computes the geometry for a type and a cluster size, as setup_tables
// of mkfs.fat 4.2 does, and tells whether the number of clusters is one of the
// type. The geometry is valid, but for that number, if the verdict is tooLarge.
func (p *Params) arrange(typ Type, perCluster, sectors uint64) (geometry, verdict) {
	m := mediumOf(sectors, p.sector())
	g := geometry{
		typ: typ, sector: p.sector(), perCluster: perCluster, reserved: 1, copies: fats,
		track: m.track, heads: m.heads, rootEntries: m.rootEntries, media: m.media,
		total: min(sectors, maxSectors) / m.track * m.track,
	}
	if p.Media != 0 {
		g.media = p.Media
	}
	if p.RootEntries != 0 {
		g.rootEntries = uint64(p.RootEntries)
	}
	g.root = ceil(g.rootEntries*slotSize, g.sector)
	if typ == FAT32 {
		g.reserved, g.root = 32, 0
	}
	align := uint64(1) // of what precedes the clusters
	if g.total > 8192 {
		align = perCluster
	}
	g.reserved, g.root = roundUp(g.reserved, align), roundUp(g.root, align)
	g.rootEntries = g.root * g.sector / slotSize
	if g.total < g.reserved+g.root {
		return g, tooSmall
	}
	// The first estimate takes the FAT's last sector as full. An even number
	// of half bytes avoids fractions for FAT12.
	space, bits := g.total-g.reserved-g.root, uint64(typ)
	estimate := (space*g.sector*8 + 2*fats*bits) / (perCluster*g.sector*8 + fats*bits)
	g.fat = roundUp(fatSectors(typ, estimate, g.sector), align)
	for {
		if g.fat*fats > space {
			return g, tooSmall
		}
		g.clusters = (space - g.fat*fats) / perCluster
		if fatSectors(typ, g.clusters, g.sector) <= g.fat {
			break
		}
		g.fat += align
	}
	return g, g.judge()
}

func (g *geometry) judge() verdict {
	least, most := clusterRange(g.typ)
	switch {
	case g.clusters < least:
		return tooSmall
	case g.clusters > most:
		return tooLarge
	}
	return fits
}

// fatSectors returns the sectors of a FAT for so many clusters.
func fatSectors(typ Type, clusters, sector uint64) uint64 {
	return ceil((clusters+firstCluster)*uint64(typ), 8*sector)
}

func ceil(n, unit uint64) uint64    { return (n + unit - 1) / unit }
func roundUp(n, unit uint64) uint64 { return ceil(n, unit) * unit }

// smallest returns the fewest whole tracks, in sectors, in which a type and a
// cluster size have so many clusters, and the geometry of that volume. The
// number of clusters may be beyond the type's.
func (p *Params) smallest(typ Type, perCluster, clusters uint64) geometry {
	least, _ := clusterRange(typ)
	clusters = max(clusters, least)
	total := clusters*perCluster + fats*fatSectors(typ, clusters, p.sector()) // of the rest there is more
	for {
		track := mediumOf(total, p.sector()).track
		total = roundUp(total, track)
		g, _ := p.arrange(typ, perCluster, total)
		if g.total == total && g.clusters >= clusters || total > maxSectors {
			g.total = total
			return g
		}
		total += track
	}
}

// fit finds the least volume of at least so many sectors that choose gives
// enough clusters. need returns the clusters that a geometry has to have.
func (p *Params) fit(sectors uint64, need func(*geometry) uint64) (geometry, bool) {
	typ := p.Type
	if typ == 0 {
		typ = FAT12
	}
	for sectors <= maxSectors {
		g, v := p.choose(sectors)
		switch v {
		case tooLarge:
			return g, false
		case fits:
			want := need(&g)
			if want <= g.clusters {
				return g, true
			}
			sectors = max(sectors+1, p.smallest(g.typ, g.perCluster, want).total)
		case tooSmall:
			guess := geometry{typ: typ, sector: p.sector(), perCluster: p.firstGuess(typ, sectors)}
			sectors = max(sectors+1, p.smallest(typ, guess.perCluster, need(&guess)).total)
		}
	}
	return geometry{}, false
}

// minimal finds the smallest volume whose type and cluster size are those of
// a volume of its size; where a border of mkfs.fat's rule is near, those of the
// other side.
func (p *Params) minimal(need func(*geometry) uint64) (geometry, bool) {
	g, ok := p.fit(1, need)
	if !ok {
		return g, false
	}
	if s := p.smallest(g.typ, g.perCluster, need(&g)); s.total < g.total && s.judge() == fits {
		return s, true
	}
	return g, true
}
