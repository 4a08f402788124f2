package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/quarry-storage/quarry/api/nearest"
)

// FieldError says what is wrong with one field.
type FieldError struct {
	// Field is the field's path: "pools[1].reserve".
	Field string
	// Line is the line of the file it is in, or 0 where that is not known.
	Line int
	// Problem is what is wrong, and what would be right.
	Problem string
}

func (e *FieldError) Error() string {
	if e.Line == 0 {
		return e.Field + ": " + e.Problem
	}
	return fmt.Sprintf("line %d: %s: %s", e.Line, e.Field, e.Problem)
}

// documents parses all YAML documents of text; one of comments only does not
// count.
func documents(text []byte) ([]yaml.Node, error) {
	var docs []yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(text))
	for {
		var doc yaml.Node
		err := dec.Decode(&doc)
		if errors.Is(err, io.EOF) {
			return docs, nil
		}
		if err != nil {
			return nil, err
		}
		docs = append(docs, doc)
	}
}

// known refuses fields that Config does not have. yaml's own KnownFields does
// too, but names Go types and can't say which field was probably meant.
func known(doc *yaml.Node) error {
	var errs []error
	checkKnown(doc, reflect.TypeFor[Config](), "", &errs)
	return errors.Join(errs...)
}

func checkKnown(n *yaml.Node, t reflect.Type, path string, errs *[]error) {
	switch {
	case n.Kind == yaml.DocumentNode:
		checkKnown(n.Content[0], t, path, errs)
	case n.Kind == yaml.AliasNode:
		*errs = append(*errs, &FieldError{Field: path, Line: n.Line,
			Problem: "aliases are not allowed, write it out"})
	case n.Kind == yaml.SequenceNode && t.Kind() == reflect.Slice:
		for i, item := range n.Content {
			checkKnown(item, t.Elem(), fmt.Sprintf("%s[%d]", path, i), errs)
		}
	case n.Kind == yaml.MappingNode && t.Kind() == reflect.Map:
		for i := 0; i+1 < len(n.Content); i += 2 {
			checkKnown(n.Content[i+1], t.Elem(), join(path, n.Content[i].Value), errs)
		}
	case n.Kind == yaml.MappingNode && t.Kind() == reflect.Struct:
		fields := fieldsOf(t)
		for i := 0; i+1 < len(n.Content); i += 2 {
			key := n.Content[i]
			field, ok := fields[key.Value]
			if !ok {
				*errs = append(*errs, &FieldError{Field: join(path, key.Value), Line: key.Line,
					Problem: unknown(key.Value, fields)})
				continue
			}
			checkKnown(n.Content[i+1], field, join(path, key.Value), errs)
		}
	}
	// Other mismatches of kind are for the decoder, which says them well.
}

func join(path, field string) string {
	if path == "" {
		return field
	}
	return path + "." + field
}

// fieldsOf maps the YAML names of t's fields to their types.
func fieldsOf(t reflect.Type) map[string]reflect.Type {
	fields := map[string]reflect.Type{}
	for field := range t.Fields() {
		if name := field.Tag.Get("yaml"); name != "" {
			fields[name] = field.Type
		}
	}
	return fields
}

func unknown(name string, fields map[string]reflect.Type) string {
	names := make([]string, 0, len(fields))
	for f := range fields {
		names = append(names, f)
	}
	slices.Sort(names)
	problem := "no such field"
	if near := nearest.Word(name, names); near != "" {
		problem += fmt.Sprintf("; did you mean %q?", near)
	}
	return problem + " (known: " + strings.Join(names, ", ") + ")"
}
