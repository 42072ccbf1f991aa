// Package shell is the shell library that unmodified elements source from $_LIB or copy into an image. File and
// function names are those of diskimage-builder; the code is ours, and holds only what published elements use.
package shell

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

//go:embed lib
var embedded embed.FS

// Files returns the library's files, without directories.
func Files() fs.FS {
	files, err := fs.Sub(embedded, "lib")
	if err != nil { // "lib" is a valid name
		return embedded
	}
	return files
}

// Write writes the library into dir, which it makes. Existing files are an error.
func Write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("write shell library: %w", err)
	}
	entries, err := fs.ReadDir(Files(), ".")
	for _, entry := range entries {
		var text []byte
		if err == nil {
			text, err = fs.ReadFile(Files(), entry.Name())
		}
		if err == nil {
			err = write(filepath.Join(dir, entry.Name()), text)
		}
	}
	if err != nil {
		return fmt.Errorf("write shell library: %w", err)
	}
	return nil
}

func write(path string, text []byte) error {
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = out.Write(text)
	return errors.Join(err, out.Close())
}
