package diagnose

import (
	"encoding"
	"encoding/json"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/quarry-storage/quarry/api/v1alpha1"
)

// ourKinds are the CustomResourceDefinitions that Quarry needs, with the type
// that this program has of each.
var ourKinds = map[string]any{
	"volumes.quarry.storage":   v1alpha1.Volume{},
	"pools.quarry.storage":     v1alpha1.Pool{},
	"snapshots.quarry.storage": v1alpha1.Snapshot{},
}

// kindState is what there is of a CustomResourceDefinition.
type kindState struct {
	exists, established, served bool
	// missing are the fields that this program knows and the definition does
	// not, and more those the other way round.
	missing, more []string
}

// stateOf compares a CustomResourceDefinition, nil if there is none, with the
// type that this program has of it.
func stateOf(definition *unstructured.Unstructured, ours any) (s kindState) {
	if definition == nil {
		return s
	}

	s.exists = true

	conditions, _, _ := unstructured.NestedSlice(definition.Object, "status", "conditions")
	for _, c := range conditions {
		c, _ := c.(map[string]any)
		s.established = s.established || c["type"] == "Established" && c["status"] == "True"
	}

	versions, _, _ := unstructured.NestedSlice(definition.Object, "spec", "versions")
	for _, v := range versions {
		v, _ := v.(map[string]any)
		if v["name"] != v1alpha1.GroupVersion.Version || v["served"] != true {
			continue
		}

		s.served = true
		schema, _, _ := unstructured.NestedMap(v, "schema", "openAPIV3Schema")
		for _, part := range []string{"spec", "status"} {
			there := map[string]bool{}
			schemaFields(part, property(schema, part), there)
			known := map[string]bool{}
			typeFields(part, fieldNamed(reflect.TypeOf(ours), part), known)
			s.missing = append(s.missing, without(known, there)...)
			s.more = append(s.more, without(there, known)...)
		}
	}

	return s
}

func without(some, others map[string]bool) []string {
	var out []string
	for field := range some {
		if !others[field] {
			out = append(out, field)
		}
	}
	slices.Sort(out)
	return out
}

func property(schema map[string]any, name string) map[string]any {
	p, _, _ := unstructured.NestedMap(schema, "properties", name)
	return p
}

// schemaFields collects the paths of the fields of an OpenAPI schema.
func schemaFields(path string, schema map[string]any, into map[string]bool) {
	if items, ok := schema["items"].(map[string]any); ok {
		schema = items
	}

	properties, _ := schema["properties"].(map[string]any)
	for name, p := range properties {
		into[path+"."+name] = true
		if p, ok := p.(map[string]any); ok {
			schemaFields(path+"."+name, p, into)
		}
	}
}

// typeFields collects the paths of the fields of a Go type as JSON has them.
func typeFields(path string, t reflect.Type, into map[string]bool) {
	for t != nil && (t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice) && !isText(t) {
		t = t.Elem()
	}

	if t == nil || t.Kind() != reflect.Struct || isText(t) {
		return
	}

	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}

		into[path+"."+name] = true
		typeFields(path+"."+name, t.Field(i).Type, into)
	}
}

// isText reports whether a type is one value in JSON, whatever its fields are.
func isText(t reflect.Type) bool {
	for _, kind := range []reflect.Type{
		reflect.TypeFor[json.Marshaler](), reflect.TypeFor[encoding.TextMarshaler](),
	} {
		if t.Implements(kind) || reflect.PointerTo(t).Implements(kind) {
			return true
		}
	}
	return false
}

// fieldNamed is the type of the field that JSON calls so.
func fieldNamed(t reflect.Type, name string) reflect.Type {
	for i := range t.NumField() {
		if own, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ","); own == name {
			return t.Field(i).Type
		}
	}
	return nil
}
