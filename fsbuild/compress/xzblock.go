package compress

import (
	"bytes"
	"fmt"

	"github.com/ulikunitz/xz"
)

// minDict is the smallest dictionary of the LZMA2 encoder, in bytes.
const minDict = 4 << 10

// AppendXZ appends src to dst as one .xz stream with one block, a CRC32 check
// and a dictionary of dict bytes, 4 KiB or more: what Linux decodes in
// squashfs and in compressed initramfs images. The bytes are a function of src
// and dict.
func AppendXZ(dst, src []byte, dict int) ([]byte, error) {
	out := bytes.NewBuffer(dst)
	w, err := xz.WriterConfig{DictCap: max(dict, minDict), CheckSum: xz.CRC32, BlockSize: int64(len(src)) + 1}.NewWriter(out)
	if err == nil {
		_, err = w.Write(src)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("compress xz data: %w", err)
	}
	return out.Bytes(), nil
}
