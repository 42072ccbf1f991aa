package build

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"cairn/elements/bootstrap"
)

// openIndex verifies the archive's indexes: the newest ones, or those that the
// lock names.
func (in *inputs) openIndex(ctx context.Context) error {
	config, err := in.config(ctx)
	if err != nil {
		return err
	}
	if in.given != nil {
		in.index, err = bootstrap.OpenPinned(ctx, config, in.pins())
	} else {
		in.index, err = bootstrap.Open(ctx, config)
	}
	var expired *bootstrap.ExpiredError
	if errors.As(err, &expired) {
		return refuse("use a current mirror (DIB_DISTRIBUTION_MIRROR), correct this machine's clock, or accept it with --allow-expired-release", "%v", err)
	}
	return err
}

// config says where the archive is. Without network only the lock and the
// store decide.
func (in *inputs) config(ctx context.Context) (bootstrap.Config, error) {
	d := &in.p.req.Debian
	c := bootstrap.Config{
		Archives: in.archives(), Arch: in.p.req.Arch, Keyring: d.Keyring, Now: in.p.req.Now, AllowExpired: d.AllowExpired,
		Store: in.p.store, Client: in.client(), Progress: in.fetched,
	}
	if len(d.Keyring) == 0 {
		return c, refuse("install debian-archive-keyring, or name a keyring with DIB_APT_KEYRING", "no keyring for Debian's archive was found")
	}
	if d.Mirror == "" && c.Client != nil {
		if err := in.discover(ctx, &c); err != nil {
			return c, err
		}
	}
	for i := range c.Archives {
		c.Archives[i].Mirror = d.Mirror
		if i > 0 {
			c.Archives[i].Mirror = d.SecurityMirror
		}
	}
	return c, nil
}

// archives are the main and the security archive as the image names them.
func (in *inputs) archives() []bootstrap.Archive {
	d := &in.p.req.Debian
	archives := bootstrap.DefaultArchives(d.Suite)
	for i := range archives {
		archives[i].Components = d.Components
	}
	if d.ImageMirror != "" {
		archives[0].Canonical = strings.TrimRight(d.ImageMirror, "/")
	}
	return archives
}

// discover takes the mirrors that this machine's own apt uses. When it has
// none for Debian, the public ones are used.
func (in *inputs) discover(ctx context.Context, c *bootstrap.Config) error {
	d := &in.p.req.Debian
	var sources []bootstrap.Source
	for name, content := range d.HostSources {
		parse := bootstrap.ParseSources
		if strings.HasSuffix(name, ".list") {
			parse = bootstrap.ParseSourcesList
		}
		found, err := parse(content)
		if err != nil {
			in.p.tell(Event{Kind: Message, Text: fmt.Sprintf("warning: %s: %v", name, err)})
			continue
		}
		sources = append(sources, found...)
	}
	m, err := bootstrap.Discover(ctx, *c, sources, d.Suite)
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err != nil {
		in.p.tell(Event{Kind: Message, Text: "using Debian's public mirrors: " + err.Error()})
		return nil //nolint:nilerr // it has been told
	}
	d.Mirror = m.Main
	if d.SecurityMirror == "" {
		d.SecurityMirror = m.Security
	}
	return nil
}

// fetched passes on how far downloads are.
func (in *inputs) fetched(p bootstrap.Progress) {
	in.p.tell(Event{Kind: Progress, Step: "download", Unit: "bytes", Done: p.Bytes, Total: p.TotalBytes})
}

// Debian's own names of the archives.
const (
	mainArchive     = "http://ftp.debian.org/debian"
	securityArchive = "http://security.debian.org"
)

// canonical turns a URL under one of the archive's names into the one that
// locks have.
func (in *inputs) canonical(asked string) (string, bool) {
	for i, a := range in.archives() {
		names := []string{a.Canonical, in.p.req.Debian.Mirror, mainArchive}
		if i > 0 {
			names = []string{a.Canonical, in.p.req.Debian.SecurityMirror, securityArchive}
		}
		for _, name := range names {
			if rest, ok := below(asked, name); ok {
				return a.Canonical + rest, true
			}
		}
	}
	return "", false
}

// below says whether a URL lies below a prefix, whatever the two schemes are.
func below(asked, prefix string) (string, bool) {
	bare := func(s string) string {
		_, rest, ok := strings.Cut(s, "://")
		if !ok {
			return s
		}
		return rest
	}
	if prefix == "" {
		return "", false
	}
	rest, ok := strings.CutPrefix(bare(asked), strings.TrimRight(bare(prefix), "/"))
	return rest, ok && strings.HasPrefix(rest, "/")
}

// Keyrings are files that may hold Debian's archive keys, the preferred first.
func Keyrings() []string { return bootstrap.KeyringPaths() }
