package build

import (
	"cairn/elements/bootstrap"
	"cairn/reproducibility/record"
)

func (in *inputs) pins() []bootstrap.PinnedRelease                { return nil }
func (in *inputs) checkLock() error                               { return nil }
func (in *inputs) settle() error                                  { in.epoch = in.index.Date(); if in.p.req.Epoch != nil { in.epoch = *in.p.req.Epoch }; return nil }
func (in *inputs) listed() []record.Entry                         { return nil }
func (in *inputs) checkSet(string, []bootstrap.Package) error     { return nil }
func (p *parent) writeLock(*Summary) error                        { return nil }
