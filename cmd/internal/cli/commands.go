package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"cairn/cmd/internal/build"
)

// cairn is the program under its own name.
func (p *program) cairn(ctx context.Context) error {
	root := &cobra.Command{
		Use: "cairn", Short: "Build operating-system images from diskimage-builder elements, without root",
		SilenceErrors: true, SilenceUsage: true, Version: Version,
	}
	root.SetArgs(p.args)
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	root.AddCommand(p.buildCommand(), p.elementsCommand(), p.mkfsCommand(), p.diskCommand(), p.convertCommand(), p.doctorCommand(), p.cacheCommand(), p.versionCommand())
	return root.ExecuteContext(ctx)
}

func (p *program) buildCommand() *cobra.Command {
	return &cobra.Command{
		Use: "build [OPTION]... ELEMENT...", Short: "Build a disk image",
		Long:               "Build a disk image from elements. Options and elements may be mixed.\n" + commonHelp + strings.TrimPrefix(cairnHelp, "\n"),
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.buildImage(cmd.Context(), &flags{cairn: true}, "cairn build", args)
		},
	}
}

func (p *program) elementsCommand() *cobra.Command {
	c := &cobra.Command{Use: "elements", Short: "Look at elements"}
	c.AddCommand(&cobra.Command{
		Use: "list", Short: "List the elements that can be used", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			elements, err := build.Elements(p.elementPaths())
			if err != nil {
				return err
			}
			for _, e := range elements {
				fmt.Fprintf(p.stdout, "%s\t%s\n", e.Name, e.Origin)
			}
			return nil
		},
	})
	return c
}

func (p *program) doctorCommand() *cobra.Command {
	return &cobra.Command{
		Use: "doctor", Short: "Say what this machine can do and what it lacks", Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			report, err := build.Doctor(p.sandboxHost())
			fmt.Fprint(p.stdout, report)
			return err
		},
	}
}

func (p *program) cacheCommand() *cobra.Command {
	var dir string
	var snapshotsOnly bool
	c := &cobra.Command{Use: "cache", Short: "Look after the content store"}
	clean := &cobra.Command{
		Use: "clean", Short: "Remove the content store, with the files in it of other user ids", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return build.CacheClean(cmd.Context(), p.storeDir(dir), snapshotsOnly, p.sandboxHost())
		},
	}
	clean.Flags().BoolVar(&snapshotsOnly, "snapshots", false, "remove the unpacked bases alone and keep what was downloaded")
	c.PersistentFlags().StringVar(&dir, "image-cache", "", "the content store (default: ~/.cache/cairn)")
	c.AddCommand(
		&cobra.Command{
			Use: "size", Short: "Print how many bytes the content store holds", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error {
				n, err := build.CacheSize(p.storeDir(dir))
				if err == nil {
					fmt.Fprintln(p.stdout, n)
				}
				return err
			},
		},
		clean)
	return c
}

func (p *program) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Run: func(*cobra.Command, []string) { fmt.Fprintln(p.stdout, "cairn", Version) },
	}
}
