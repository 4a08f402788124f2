package config_test

import (
	"encoding/json"
	"maps"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/quarry-storage/quarry/nodeagent/config"
)

// TestChartAgrees: the chart's schema knows the fields of a pool that Load
// knows, and its default values load.
func TestChartAgrees(t *testing.T) {
	var schema struct {
		Properties  map[string]any
		Definitions struct {
			Pool struct{ Properties map[string]any }
		}
	}
	text, err := os.ReadFile("../../charts/quarry/values.schema.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(text, &schema))
	require.Equal(t, fields(reflect.TypeFor[config.Pool]()),
		slices.Sorted(maps.Keys(schema.Definitions.Pool.Properties)))
	for _, field := range fields(reflect.TypeFor[config.Config]()) {
		require.Contains(t, schema.Properties, field)
	}

	var values, file map[string]any
	text, err = os.ReadFile("../../charts/quarry/values.yaml")
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(text, &values))
	file = map[string]any{}
	for _, field := range fields(reflect.TypeFor[config.Config]()) {
		require.Contains(t, values, field)
		file[field] = values[field]
	}
	text, err = yaml.Marshal(file)
	require.NoError(t, err)
	c, err := config.Load(strings.NewReader(string(text)))
	require.NoError(t, err)
	want, err := config.Default("/volumes")
	require.NoError(t, err)
	require.Equal(t, want.PoolsOf("any"), c.PoolsOf("any"))
	require.Equal(t, want.ByClaimIndex, c.ByClaimIndex)
	require.Equal(t, want.HeavyJobs, c.HeavyJobs)
}

// fields are the YAML names of the type's fields, sorted.
func fields(t reflect.Type) (names []string) {
	for field := range t.Fields() {
		names = append(names, field.Tag.Get("yaml"))
	}
	slices.Sort(names)
	return names
}
