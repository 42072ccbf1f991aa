package build

import (
	"io/fs"
	"testing"

	"cairn/elements/blockdevice"
	"cairn/elements/builtin"
	"cairn/fsbuild"
	"cairn/fsbuild/partition"
	"cairn/fsbuild/tree"
	"cairn/reproducibility"
)

// TestDiskOfTheElement compares what is built for an element with the
// configuration that the element has.
func TestDiskOfTheElement(t *testing.T) {
	seed := reproducibility.NewSeed([]byte("test"))
	for element, label := range map[string]partition.Label{"block-device-mbr": partition.MBR, "block-device-gpt": partition.GPT} {
		t.Run(element, func(t *testing.T) {
			text, err := fs.ReadFile(builtin.FS(), element+"/block-device-default.yaml")
			if err != nil {
				t.Fatal(err)
			}
			plan, err := blockdevice.Parse(text, blockdevice.Params{})
			if err != nil {
				t.Fatal(err)
			}
			img := fsbuild.Image{Tree: tree.New()}
			if err := addTable(&img, table([]string{"bootloader", element, "vm"}), seed); err != nil {
				t.Fatal(err)
			}
			d := plan.Disks[0]
			if d.Label != label || len(plan.Disks) != 1 || len(plan.FileSystems) != 1 {
				t.Fatalf("the element has the plan %+v", plan)
			}
			root, _ := plan.At("/")
			described := disk(img.Table, seed, root.Label)
			if described.Label != "cloudimg-rootfs" || described.PartMap == "" || described.PartUUID == "" {
				t.Errorf("hooks see %+v", described)
			}
			if d.Partitions[described.Partition-1].Name != root.Base {
				t.Errorf("hooks see partition %d as the root, which is %s", described.Partition, root.Base)
			}
			if label == partition.MBR {
				return // one partition, which fsbuild makes by itself
			}
			comparePartitions(t, d.Partitions, img.Partitions, root.Base)
			if got := uuidText(img.Partitions[described.Partition-1].Entry.GUID); got != described.PartUUID {
				t.Errorf("the root partition's GUID is %s, hooks see %s", got, described.PartUUID)
			}
		})
	}
	if got := table([]string{"debian-minimal"}); got != fsbuild.NoTable {
		t.Errorf("table of no block device is %d", got)
	}
}

// comparePartitions expects the partitions of an element's configuration.
func comparePartitions(t *testing.T, want []blockdevice.Partition, got []fsbuild.Partition, root string) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d partitions, not %d", len(got), len(want))
	}
	for i, p := range want {
		e := got[i].Entry
		if e.Name != p.Name || e.TypeGUID != p.Type || got[i].Size != p.Size.Bytes || got[i].Root != (p.Name == root) {
			t.Errorf("partition %d is %+v, the element says %+v", i+1, got[i], p)
		}
	}
}
