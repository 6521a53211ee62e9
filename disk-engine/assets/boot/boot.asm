; A boot sector that counts its boots on the disk it was started from.
;
;   LBA 0     this sector, loaded by the BIOS to 0000:7c00
;   LBA 1     the record, all numbers little-endian as the processor stores them
;             +0  8 bytes  magic "deboot1",0
;             +8  u32      id: drawn at the first boot, the same ever after
;             +12 u32      count: boots so far
;             +16          zeros
;   the rest  never touched
;
; It prints exactly one line to COM1,
;
;   disk-engine boot=<decimal count> id=<8 hexadecimal digits>
;   disk-engine error=<read | write | verify>
;
; and the line comes after the record was written and read again: whoever has seen the line may
; kill the machine and must find the count at the next boot.
;
; Then it writes 0 (or 1 after an error) to port 0xf4. QEMU's isa-debug-exit device there ends
; QEMU with status 1 (or 3); without the device the port is nobody's and the processor halts.

        bits    16
        cpu     586                     ; rdtsc
        org     0x7c00

COM1            equ     0x3f8
EXIT_PORT       equ     0xf4
RECORD          equ     0x7e00          ; LBA 1 as it will be written
AGAIN           equ     0x8000          ; LBA 1 as it was read back

start:
        jmp     0:.normal               ; some BIOSes come in as 07c0:0000
.normal:
        xor     ax, ax
        mov     ds, ax
        mov     es, ax
        mov     ss, ax
        mov     sp, start
        cld
        sti
        mov     [drive], dl

; COM1: 115200 baud, 8 bits, no parity, one stop bit.
        mov     dx, COM1 + 3
        mov     al, 0x83                ; divisor latch
        out     dx, al
        mov     dx, COM1
        mov     ax, 1
        out     dx, al
        inc     dx
        mov     al, ah
        out     dx, al
        mov     dx, COM1 + 3
        mov     al, 0x03
        out     dx, al

; The record, or a new one.
        mov     bx, RECORD
        mov     ah, 0x42
        mov     si, error_read
        call    transfer
        mov     di, RECORD
        mov     si, magic
        mov     cx, 8
        repe    cmpsb
        je      count
        mov     di, RECORD
        xor     ax, ax
        mov     cx, 256
        rep     stosw
        mov     di, RECORD
        mov     si, magic
        mov     cx, 8
        rep     movsb
        rdtsc
        imul    eax, eax, 0x9e3779b1    ; odd, so a bijection: it only spreads the low bits
        mov     [RECORD + 8], eax

count:
        inc     dword [RECORD + 12]
        mov     bx, RECORD
        mov     ah, 0x43
        mov     si, error_write
        call    transfer
        mov     bx, AGAIN
        mov     ah, 0x42
        mov     si, error_read
        call    transfer
        mov     si, RECORD
        mov     di, AGAIN
        mov     cx, 256
        repe    cmpsw
        mov     si, error_verify
        jne     fail

        mov     si, text_boot
        call    print
        mov     eax, [RECORD + 12]
        call    print_decimal
        mov     si, text_id
        call    print
        mov     eax, [RECORD + 8]
        call    print_hexadecimal
        xor     bl, bl
        jmp     finish

; si: which error
fail:
        push    si
        mov     si, text_error
        call    print
        pop     si
        call    print
        mov     bl, 1

; bl: what to tell the exit device
finish:
        mov     si, text_end
        call    print
        mov     dx, COM1 + 5
.drain:
        in      al, dx
        test    al, 0x40                ; transmitter empty
        jz      .drain
        mov     al, bl
        out     EXIT_PORT, al
.halt:
        hlt
        jmp     .halt

; ah: 0x42 read, 0x43 write; bx: buffer; si: the error to fail with
transfer:
        mov     [packet.buffer], bx
        push    si
        mov     si, packet
        mov     dl, [drive]
        xor     al, al
        int     0x13
        pop     si
        jc      fail
        ret

; si: text ending in 0
print:
        lodsb
        test    al, al
        jz      .done
        call    put
        jmp     print
.done:
        ret

; eax: number
print_decimal:
        mov     ebx, 10
        xor     cx, cx
.divide:
        xor     edx, edx
        div     ebx
        push    dx
        inc     cx
        test    eax, eax
        jnz     .divide
.digit:
        pop     ax
        add     al, '0'
        call    put
        loop    .digit
        ret

; eax: number
print_hexadecimal:
        mov     cx, 8
.digit:
        rol     eax, 4
        push    eax
        and     al, 0x0f
        cmp     al, 10
        jb      .decimal
        add     al, 'a' - 10 - '0'
.decimal:
        add     al, '0'
        call    put
        pop     eax
        loop    .digit
        ret

; al: byte for COM1
put:
        push    ax
        mov     dx, COM1 + 5
.wait:
        in      al, dx
        test    al, 0x20                ; room for a byte
        jz      .wait
        mov     dx, COM1
        pop     ax
        out     dx, al
        ret

magic           db      'deboot1', 0
text_boot       db      'disk-engine boot=', 0
text_id         db      ' id=', 0
text_error      db      'disk-engine error=', 0
text_end        db      13, 10, 0
error_read      db      'read', 0
error_write     db      'write', 0
error_verify    db      'verify', 0

; INT 13h extensions, disk address packet
        align   4
packet          db      16, 0
                dw      1               ; sectors
.buffer         dw      0
                dw      0               ; segment
                dq      1               ; LBA
drive           db      0

        times   510 - ($ - $$) db 0
        dw      0xaa55
