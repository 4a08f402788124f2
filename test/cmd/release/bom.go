package main

import (
	"bytes"
	"debug/buildinfo"
	"fmt"
	"strings"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// bom is what a program was made of, by what the compiler wrote into it: the
// modules, with their versions and checksums, and the standard library.
func (r *release) bom(name, path string, content []byte) ([]byte, error) {
	info, err := buildinfo.ReadFile(path)
	if err != nil {
		return nil, err
	}

	main := module(info.Main.Path, r.version, "")
	main.Type, main.Name = cdx.ComponentTypeApplication, name
	main.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: sumOf(content)}}

	goVersion := strings.TrimPrefix(strings.Fields(info.GoVersion)[0], "go")
	components := []cdx.Component{module("stdlib", goVersion, "")}
	needs := []string{components[0].BOMRef}
	for _, dep := range info.Deps {
		used := dep
		if dep.Replace != nil {
			used = dep.Replace
		}
		c := module(used.Path, used.Version, used.Sum)
		components, needs = append(components, c), append(needs, c.BOMRef)
	}

	b := cdx.NewBOM()
	b.Metadata = &cdx.Metadata{
		Timestamp:  r.modified.Format("2006-01-02T15:04:05Z"),
		Component:  &main,
		Properties: &[]cdx.Property{{Name: "quarry:commit", Value: r.commit}},
	}
	b.Components = &components
	b.Dependencies = &[]cdx.Dependency{{Ref: main.BOMRef, Dependencies: &needs}}

	var out bytes.Buffer
	if err := cdx.NewBOMEncoder(&out, cdx.BOMFileFormatJSON).SetPretty(true).Encode(b); err != nil {
		return nil, fmt.Errorf("encode what it was made of: %w", err)
	}
	return out.Bytes(), nil
}

// module is a Go module. sum is as in go.sum, "" for none.
func module(path, version, sum string) cdx.Component {
	purl := "pkg:golang/" + path + "@" + version
	c := cdx.Component{
		BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: path, Version: version, PackageURL: purl,
	}
	if sum != "" {
		// Not a hash of CycloneDX's: it is one of the files' hashes.
		c.Properties = &[]cdx.Property{{Name: "go:sum", Value: sum}}
	}
	return c
}
