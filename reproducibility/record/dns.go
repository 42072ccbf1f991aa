package record

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/net/dns/dnsmessage"
)

// dnsTTL is how long, in seconds, clients may keep an answer.
const dnsTTL = 3600

// loopback is the address of every name.
var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1}).As4()

// serveDNS answers the queries that come in on pc until it is closed.
func serveDNS(ctx context.Context, pc net.PacketConn) error {
	buf := make([]byte, 4096)
	for {
		n, from, err := pc.ReadFrom(buf)
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return nil //nolint:nilerr // how serving ends
		}
		if err != nil {
			return fmt.Errorf("read DNS query: %w", err)
		}
		if answer := answerDNS(buf[:n]); answer != nil {
			// A client that cannot be answered asks again.
			_, _ = pc.WriteTo(answer, from)
		}
	}
}

// answerDNS returns the answer to a query (RFC 1035 4.1), nil for what is none:
// every name has the address 127.0.0.1 and no other record.
func answerDNS(query []byte) []byte {
	var p dnsmessage.Parser
	head, err := p.Start(query)
	if err != nil || head.Response {
		return nil
	}
	head.Response, head.Authoritative, head.Truncated = true, false, false
	head.RecursionAvailable = true
	head.RCode = dnsmessage.RCodeSuccess
	questions, err := p.AllQuestions()
	switch {
	case head.OpCode != 0:
		head.RCode, questions = dnsmessage.RCodeNotImplemented, nil
	case err != nil || len(questions) != 1:
		head.RCode, questions = dnsmessage.RCodeFormatError, nil
	}
	m := dnsmessage.Message{Header: head, Questions: questions}
	for _, q := range questions {
		if q.Type == dnsmessage.TypeA && q.Class == dnsmessage.ClassINET {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: dnsTTL},
				Body:   &dnsmessage.AResource{A: loopback},
			})
		}
	}
	answer, err := m.Pack()
	if err != nil {
		return nil
	}
	return answer
}
