package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
)

// file is one file of an archive.
type file struct {
	name    string
	mode    int64
	content []byte
}

// pack makes a gzipped archive of files, in their order, owned by root and of the
// commit's time.
func (r *release) pack(files []file) ([]byte, error) {
	var out bytes.Buffer
	// Without a name and a time in its header.
	z, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	w := tar.NewWriter(z)
	for _, f := range files {
		header := &tar.Header{
			Typeflag: tar.TypeReg, Name: f.name, Mode: f.mode, Size: int64(len(f.content)),
			ModTime: r.modified, Format: tar.FormatPAX,
		}
		if err := w.WriteHeader(header); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.content); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
