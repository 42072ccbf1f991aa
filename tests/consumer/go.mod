module consumer

go 1.26.0

require cairn v0.0.0

require (
	github.com/klauspost/compress v1.20.3 // indirect
	github.com/therootcompany/xz v1.0.1 // indirect
	github.com/ulikunitz/xz v0.5.17 // indirect
)

replace cairn => ../..
