package admin

import (
	"time"

	"github.com/spf13/cobra"
)

// completionPatience is how long the shell may wait for names.
const completionPatience = 3 * time.Second

// completeFlag has the shell offer the values of a flag.
func completeFlag(cmd *cobra.Command, flag string, values []string) {
	err := cmd.RegisterFlagCompletionFunc(flag,
		cobra.FixedCompletions(values,
			cobra.ShellCompDirectiveNoFileComp|cobra.ShellCompDirectiveKeepOrder))
	if err != nil {
		panic(err) // the flag is defined where this is called
	}
}
