package show

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Build is what a program was made of.
type Build struct {
	Version string `json:"version"`
	// Commit is the full hash, with -dirty behind it where the sources were
	// changed; empty where nobody said.
	Commit string `json:"commit,omitempty"`
	// Go is the release of the compiler, and Platform what it compiled for.
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// BuildOf completes what the linker was told. Where it was told no commit, the
// one that Go noted counts.
func BuildOf(version, commit string) Build {
	b := Build{
		Version:  version,
		Commit:   commit,
		Go:       runtime.Version(),
		Platform: runtime.GOOS + "/" + runtime.GOARCH,
	}
	if info, ok := debug.ReadBuildInfo(); ok && b.Commit == "" {
		b.Commit = commitIn(info.Settings)
	}

	return b
}

func commitIn(settings []debug.BuildSetting) string {
	noted := map[string]string{}
	for _, s := range settings {
		noted[s.Key] = s.Value
	}

	commit := noted["vcs.revision"]
	if commit != "" && noted["vcs.modified"] == "true" {
		commit += "-dirty"
	}

	return commit
}

// NewVersion is the command version of a program.
func NewVersion(program, version, commit string) *cobra.Command {
	var output Output
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version, the commit that it was made of, and the compiler",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			asJSON, err := output.IsJSON()
			if err != nil {
				return err
			}

			b := BuildOf(version, commit)
			if asJSON {
				return JSON(cmd.OutOrStdout(), b)
			}
			if b.Commit == "" {
				b.Commit = "unknown"
			}

			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s\ncommit %s\n%s %s\n",
				program, b.Version, b.Commit, b.Go, b.Platform)
			return err
		},
	}
	output.Flags(cmd.Flags())

	return cmd
}
