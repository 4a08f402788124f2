// Command packages installs the Debian packages that a target of the Makefile
// needs, and says so:
//
//	packages SET...    filesystems, testbed, machine, race, bench
//
// It does nothing, in a moment, where nothing is missing.
package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"strings"

	"github.com/quarry-storage/quarry/test/debian"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "packages:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, sets []string) error {
	var needs []debian.Need
	for _, name := range sets {
		set, ok := debian.Sets[name]
		if !ok {
			return fmt.Errorf("no set of packages is called %q; there are %s",
				name, strings.Join(slices.Sorted(maps.Keys(debian.Sets)), ", "))
		}
		needs = append(needs, set...)
	}
	return debian.Install(ctx, func(format string, args ...any) {
		fmt.Printf("packages: "+format+"\n", args...)
	}, needs)
}
